"""`python -m flaxbert`, the same as `flaxbert`."""

import sys

from flaxbert.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
