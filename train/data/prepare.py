"""Command `python -m train.data.prepare TEXT... --output STORE`: tokenise text once for all runs."""

import sys

if __name__ == "__main__":
    # Imported here: every process that tokenises imports this file, and needs none of it.
    from train.data.pretraining.preparation import main

    sys.exit(main(sys.argv[1:]))
