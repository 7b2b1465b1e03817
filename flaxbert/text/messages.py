"""Cells of rows of data, and the wording of errors about them: text that is not readable, names, problems."""

import ast
import io
import json
import re
import tokenize
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

MAX_SHOWN = 5
"""Problems quoted in one error; the others are counted."""

_NOT_TEXT = re.compile(r"[\x00\ud800-\udfff]")


def encoding_problem(text: str) -> str | None:
    """Return why a decoded string is not text, None if it is.

    Bytes that were not UTF-8 are expected as lone surrogates (Python's "surrogateescape").
    """
    found = _NOT_TEXT.search(text)
    if found is None:
        return None
    code, before = ord(found[0]), text[: found.start()].split("\n")
    position = f"at character {len(before[-1]) + 1}" + (f" of its line {len(before)}" if len(before) > 1 else "")
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02x} {position} is not UTF-8; convert the text to UTF-8"
    return f"a {'lone surrogate' if code else 'NUL character (UTF-16, or not a text file?)'} {position}"


def is_invisible(text: str) -> bool:
    """Return whether a text has nothing but blanks and other invisible characters, such as zero-width spaces."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def text_cell(
    cells: Mapping[str, object], column: str, *, allow_numbers: bool = False, allow_blank: bool = False
) -> str:
    """Return the text in a column of one row.

    Args:
        cells: the row, by column name.
        column: the name of the column.
        allow_numbers: accept numbers and booleans, and return them as JSON spells them.
        allow_blank: accept a text of blanks only.

    Raises:
        ValueError: the column is missing, or holds no readable text.
    """
    if column not in cells:
        raise ValueError(f"no {column!r} beside {quote_names(cells)}")
    value = cells[column]
    if allow_numbers and isinstance(value, int | float):
        return json.dumps(value, allow_nan=False)
    if not isinstance(value, str):
        expected = "a string or a number" if allow_numbers else "a string"
        raise ValueError(f"{column!r} is {value!r:.40}, expected {expected}")
    problem = encoding_problem(value) if allow_blank or not is_invisible(value) else "nothing but blanks"
    if problem is not None:
        raise ValueError(f"{column!r}: {problem}")
    return value


def list_cell(value: object) -> list[object] | None:
    """Return a list, also one that a cell spells as JSON, Python or NumPy do; None if it is no list."""
    if isinstance(value, list):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    items: list[object] = []
    sign = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text[1:-1].replace("\n", " ")).readline):
            if token.type == tokenize.OP and token.string == "-":
                sign = "-"
            elif token.type in (tokenize.STRING, tokenize.NUMBER) or token.string in ("True", "False", "None"):
                items.append(ast.literal_eval(sign + token.string))
                sign = ""
            elif token.string.strip() not in ("", ","):
                return None
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return items


def quote_names(names: Iterable[str]) -> str:
    """Return the first fifty names in quotes with commas between them, "none" if there are none."""
    quoted = [f"{name[:40]!r}" for name in names]
    more = f" and {len(quoted) - 50} more" if len(quoted) > 50 else ""
    return ", ".join(quoted[:50]) + more or "none"


def raise_problems(problems: Sequence[str], total: int, remedy: str = "") -> None:
    """Raise a ValueError that counts the problems, quotes the first five and ends with the remedy, if there are any."""
    if problems:
        more = f"\n  and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        shown = "\n  ".join(problems[:MAX_SHOWN])
        end = f"\n{remedy}" if remedy else ""
        raise ValueError(f"{len(problems)} of {total} rows can't be used:\n  {shown}{more}{end}")
