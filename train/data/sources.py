"""The records of a file, or of a data set of the `datasets` library, whatever they hold."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from train.data.hub import dataset_records
from train.data.messages import listed, refuse_split
from train.data.text_tables import ENDINGS, Record, text_records


def read_records(
    source: str | os.PathLike[str], *, split: str | None = None, numbered: bool = False, lists: bool = False
) -> tuple[Sequence[Record], str]:
    """The records, at least one, and what is expected of them, as a sentence for errors.

    Args:
        source: a file whose ending is in `text_tables.ENDINGS`, `datasets:NAME[:CONFIG]`, a data set's folder, or a
            name that is no path.
        split: for data sets only.
        numbered: a .tsv or .csv has no header, and its columns are called "0", "1", ...
        lists: whether columns of a data set that hold lists are read, too.

    Raises:
        FileNotFoundError, ValueError: there is no such thing, or there is nothing in it.
    """
    where = os.fspath(source)
    path = Path(where).expanduser()
    ending = path.suffix.lower()
    is_path = ending in ENDINGS or path.exists() or path.is_absolute() or where.startswith((".", "~"))
    if where.startswith("datasets:") or path.is_dir() or not is_path:
        where = where.removeprefix("datasets:")
        records, remedy = dataset_records(where, split, lists=lists), "Expected: strings, and scalar labels."
    else:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; {_beside(path)}")
        if ending not in ENDINGS:
            raise ValueError(f"{path}: ending {ending!r} is none of {listed(ENDINGS)}; rename or convert the file")
        refuse_split(split, path)
        records, remedy = text_records(path, where, numbered=numbered), f"Expected in {ending}: {ENDINGS[ending]}."
    if not records:
        raise ValueError(f"{where}: a header but no rows. {remedy}")
    return records, remedy


def _beside(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    files = sorted(entry.name for entry in folder.iterdir())
    shown = difflib.get_close_matches(path.name, files) or files[:10]
    return f"{folder} holds {listed(shown)}: give one of its files, or `datasets:NAME`"
