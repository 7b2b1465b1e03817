"""`python -m train.benchmark [--sizes base large] [--lengths 128 512] [--rows 32] ...`; see `speed.py`."""

import os
import sys

if __name__ == "__main__":
    # Before jax is imported: by default it reserves most of a GPU's memory, which PyTorch has to share.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from train.environment import restart_with_malloc_settings

    restart_with_malloc_settings()
    from train.benchmark.speed import main

    sys.exit(main(sys.argv[1:]))
