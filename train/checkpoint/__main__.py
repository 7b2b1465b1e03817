"""The command `python -m train.checkpoint verify FOLDER`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from train.checkpoint.folder import checkpoint_steps, damaged_names, describe
from train.checkpoint.manifest import MANIFEST_FILE


def main(arguments: Sequence[str]) -> int:
    """Verify all checkpoints of a run, or one, and print a line for each.

    Returns:
        0: all are intact. 1: a checkpoint is damaged. 2: there is none, or the arguments are wrong.
    """
    usage = "usage: python -m train.checkpoint verify FOLDER (of a run, of its checkpoints, or of one of them)"
    if list(arguments) in (["--help"], ["-h"]):
        print(usage)
        return 0
    if len(arguments) != 2 or arguments[0] != "verify":
        print(usage, file=sys.stderr)
        return 2
    folder = Path(arguments[1]).expanduser()
    if (folder / MANIFEST_FILE).is_file():
        state, intact = describe(folder.absolute())
        print(f"{folder}: {state}")
        return int(not intact)
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    steps = checkpoint_steps(folder) if folder.is_dir() else []
    if not steps and folder.is_dir() and damaged_names(folder):
        print(f"{folder}: all checkpoints were set aside, because they are damaged: {', '.join(damaged_names(folder))}")
        return 1
    if not steps:
        print(f"error: {folder}: holds no checkpoint; give the folder of a run, or of its checkpoints", file=sys.stderr)
        return 2
    states = {step: describe(folder / str(step)) for step in steps}
    for step, (state, _) in states.items():
        print(f"{step}: {state}")
    for name in damaged_names(folder):
        print(f"{name}: set aside by a run, because it was damaged")
    return int(not all(intact for _, intact in states.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
