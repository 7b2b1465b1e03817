"""Text as the commands print and write it: strict JSON in the characters of the texts, control characters escaped."""

import json
import logging
import math
from collections.abc import Mapping

_MAX_PRINTED, _PRINTED_END = 100_000, 2000  # characters


def json_text(values: Mapping[str, object], *, encoding: str | None = "utf-8", indent: int | None = None) -> str:
    """Return an object as JSON, which has no infinite numbers ("Infinity") and nothing but null for NaN.

    Characters are escaped only if the encoding (of standard output; None is UTF-8) lacks one of them.
    """
    finite = _finite(values)
    text = json.dumps(finite, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:  # also a lone surrogate in the name of a label or tensor
        return json.dumps(finite, indent=indent, allow_nan=False)
    return text


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def escape_control_characters(text: str, *, lines: bool = True) -> str:
    """Escape non-printable characters as Python literals do; over 100,000 characters the middle is left out.

    Line ends stay as they are with `lines`.
    """
    if len(text) > _MAX_PRINTED:
        text = f"{text[:_MAX_PRINTED]}\n... ({len(text):,} characters) ...\n{text[-_PRINTED_END:]}"
    return "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)


class EscapingFormatter(logging.Formatter):
    """Log formatter that escapes control characters in messages."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted message, escaped."""
        return escape_control_characters(super().format(record))
