"""JSON as the commands print and write it: strict, and in the characters of the texts."""

import json
import math
from collections.abc import Mapping


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
