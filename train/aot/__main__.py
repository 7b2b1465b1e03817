"""`python -m train.aot configs/NAME.py --topology v5e:16x16 [--flags]`; see `command.py`."""

import os
import sys

if __name__ == "__main__":
    # Before jax is imported, so that it does not claim a device.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from train.aot.estimate_command import main

    sys.exit(main(sys.argv[1:]))
