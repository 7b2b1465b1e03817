"""`python -m train.data.prepare TEXT... --output STORE`: text to tokens, once, for every run that trains on it."""

import sys

if __name__ == "__main__":
    from train.data.corpus.preparation import main

    sys.exit(main(sys.argv[1:]))
