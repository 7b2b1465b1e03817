"""`python -m train configs/NAME.py [--flags]`; see `command.py`."""

import sys

from train.environment import compile_quickly, keep_memory, run_inline, without_false_alarm

if __name__ == "__main__":
    keep_memory()  # before the imports, which take seconds and would be done twice
    compile_quickly()
    without_false_alarm()
    run_inline()
    from train.command import end

    end(sys.argv[1:])
