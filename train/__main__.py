"""`python -m train configs/NAME.py [--flags]`; see `command.py`."""

import sys

from train.environment import compile_quickly, use_huge_pages

if __name__ == "__main__":
    use_huge_pages()  # before the imports, which take seconds and would be done twice
    compile_quickly()
    from train.command import main

    sys.exit(main(sys.argv[1:]))
