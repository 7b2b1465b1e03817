"""How the readers of data name what is wrong with it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = 5  # malformed rows in an error

_UNREADABLE = re.compile(r"[\x00\ud800-\udfff]")


def unreadable(text: str) -> str:
    """What keeps a string from being text, "" where nothing does."""
    found = _UNREADABLE.search(text)
    if found is None:
        return ""
    code, before = ord(found[0]), text[: found.start()].split("\n")
    place = f"at character {len(before[-1]) + 1}" + f" of its line {len(before)}" * (len(before) > 1)
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02x} {place} is not UTF-8; save the file as UTF-8"
    return f"a {'lone surrogate' if code else 'NUL character (UTF-16, or no text file?)'} {place}"


def text_in(values: Mapping[str, Any], name: str, *, numbers: bool = False, blank: bool = False) -> str:
    """The text of a row's column; raises ValueError saying why there is none.

    Args:
        values: of the row, by column.
        name: of the column.
        numbers: whether a number, or a boolean, is taken in JSON's spelling.
        blank: whether the text may have nothing but blanks.
    """
    if name not in values:
        raise ValueError(f"no {name!r} beside {listed(values)}")
    value = values[name]
    if numbers and isinstance(value, int | float):
        return json.dumps(value, allow_nan=False)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {value!r:.40}, expected a string" + " or a number" * numbers)
    if problem := "nothing but blanks" if not (blank or value.strip()) else unreadable(value):
        raise ValueError(f"{name!r}: {problem}")
    return value


def refuse_split(split: str | None, file: Path) -> None:
    """Raises a ValueError where a split is asked of a file."""
    if split is not None:
        raise ValueError(f"split={split!r} is for data sets; {file} is a file: name the split's own file")


def listed(names: Iterable[str]) -> str:
    """The first fifty names, quoted, "none" for none."""
    shown = [f"{name[:40]!r}" for name in names]
    return ", ".join(shown[:50]) + f" and {len(shown) - 50} more" * (len(shown) > 50) or "none"


def refuse(problems: Sequence[str], total: int, remedy: str) -> None:
    """Raises a ValueError that counts the problems and shows the first five, where there are any."""
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" * (len(problems) > SHOWN)
        shown = "\n  ".join(problems[:SHOWN])
        raise ValueError(f"{len(problems)} of {total} rows can't be used:\n  {shown}{more}\n{remedy}")
