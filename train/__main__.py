"""Entry point of `python -m train configs/NAME.py [--flags]`; see `command.py`."""

import sys

from train.environment import (
    disable_loop_unrolling,
    restart_with_malloc_settings,
    run_steps_in_main_thread,
    silence_xla_log_on_cpu,
)
from train.preemption import Preemption

if __name__ == "__main__":
    restart_with_malloc_settings()  # first, or the imports below, which take seconds, would be done twice
    preemption = Preemption().listen()
    disable_loop_unrolling()
    silence_xla_log_on_cpu()
    run_steps_in_main_thread()
    try:
        from train.command import run_and_exit
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("train", "flaxbert"):
            raise
        sys.exit(f"error: {error.name} is not installed; training needs the extra [train]: pip install -e '.[train]'")

    run_and_exit(sys.argv[1:], preemption)
