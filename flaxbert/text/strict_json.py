"""JSON whose objects have no key twice."""

import json
from collections.abc import Iterable


class RepeatedKey(dict[str, object]):
    """A JSON object with a key twice, of which `json.loads` would keep the last value."""

    def __init__(self, pairs: list[tuple[str, object]]):
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.key = next(key for number, key in enumerate(keys) if key in keys[:number])

    @property
    def problem(self) -> str:
        """A sentence about the key."""
        return f"an object has the key {self.key[:40]!r} twice"


def parse_json(text: str | bytes) -> tuple[object, bool]:
    """Parse JSON; return (value, whether it contains a `RepeatedKey`).

    Raises:
        ValueError, RecursionError: the text is not JSON.
    """
    repeated = False

    def make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal repeated
        values = dict(pairs)
        if len(values) == len(pairs):
            return values
        repeated = True
        return RepeatedKey(pairs)

    return json.loads(text, object_pairs_hook=make_object), repeated


def find_repeated_key(value: object) -> RepeatedKey | None:
    """Return the first `RepeatedKey` in a value."""
    if isinstance(value, RepeatedKey):
        return value
    inner: Iterable[object] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in inner if (found := find_repeated_key(item)) is not None), None)
