"""The hosts of a run, and the values they exchange and check; one process per host."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Value = TypeVar("Value")


class HostGroup:
    """The group of a single host; `tcp_group.TcpHostGroup` is that of several.

    All hosts must call the same methods in the same order. If one host fails, it ends the others, so that none waits
    for ever.

    Attributes:
        index: index of this host; host 0 decides and writes.
        names: machine names by host index.
    """

    index: int = 0
    names: tuple[str, ...] = ("",)

    def __enter__(self) -> "HostGroup":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the other hosts; if this host failed, end them instead."""

    def exchange(self, value: Value) -> list[Value]:
        """Return the values of all hosts by index; values must be representable in JSON."""
        return [value]

    def share(self, make: Callable[[], Value]) -> Value:
        """Call `make` on host 0 and return its result on all hosts; it must be representable in JSON."""
        values: list[Any] = self.exchange(make() if self.index == 0 else None)
        return values[0]

    def wait(self) -> None:
        """Wait until all hosts have called this method."""
        self.exchange(None)

    def check_same(self, what: str, values: Mapping[str, Json]) -> None:
        """Check, on all hosts, that every host has the values of host 0.

        Args:
            what: a noun for the error message, such as "settings".
            values: values by name.

        Raises:
            ValueError: lists each name that differs, the host, and both values.
        """
        problems = []
        first, *others = self.exchange(dict(values))
        for index, found in enumerate(others, 1):
            names = [name for name in sorted(first.keys() | found.keys()) if first.get(name) != found.get(name)]
            problems += [
                f"{name}: {found.get(name)} on {self.name(index)}, {first.get(name)} on host 0" for name in names
            ]
        if problems:
            raise ValueError(f"the hosts have different {what}; give all hosts the same:\n  " + "\n  ".join(problems))

    def name(self, index: int) -> str:
        """Return the index and machine name of a host, for messages."""
        return f"host {index} ({self.names[index]})"


SINGLE_HOST = HostGroup()
