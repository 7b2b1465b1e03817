"""The check that all settings of the optimizer share."""

from typing import Any


def require_limits(settings: Any, limits: dict[str, tuple[float, float]]) -> None:
    """Raises ValueError for the first of these fields that is outside its limits; a field of None passes."""
    for name, (low, high) in limits.items():
        value = vars(settings)[name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} is {value}; allowed: {low} to {high}")
