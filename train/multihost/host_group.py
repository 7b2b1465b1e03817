"""The processes of a run, one a host, as one of them sees them: what they decide together."""

from collections.abc import Callable, Mapping
from typing import Any


class HostGroup:
    """The hosts of a run; as it stands here, a single one, which agrees with itself. `tcp_group.TcpHostGroup` are many.

    All methods are called by all hosts, in the same order; one that fails ends the others, so none waits for ever.

    Attributes:
        index: of this host; host 0 decides and writes.
        names: of the machines, by index.
    """

    index: int = 0
    names: tuple[str, ...] = ("",)

    def __enter__(self) -> "HostGroup":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the others; where this one failed, tells them instead."""

    def exchange(self, value: Any) -> list[Any]:
        """The value (what JSON can hold) of every host, by index."""
        return [value]

    def share(self, make: Callable[[], Any]) -> Any:
        """What host 0 makes, for all; must be what JSON can hold."""
        return self.exchange(make() if self.index == 0 else None)[0]

    def wait(self) -> None:
        """Returns when all hosts have come here."""
        self.exchange(None)

    def check_same(self, what: str, values: Mapping[str, Any]) -> None:
        """Raises, on all hosts, where one holds other values than host 0.

        Raises:
            ValueError: names what differs, the host, and both values.
        """
        problems = []
        first, *others = self.exchange(dict(values))
        for index, found in enumerate(others, 1):
            names = [name for name in sorted(first.keys() | found.keys()) if first.get(name) != found.get(name)]
            problems += [
                f"{name}: {found.get(name)} on {self.name(index)}, {first.get(name)} on host 0" for name in names
            ]
        if problems:
            raise ValueError(f"the hosts have different {what}; give all the same:\n  " + "\n  ".join(problems))

    def name(self, index: int) -> str:
        """A host as messages name it."""
        return f"host {index} ({self.names[index]})"


SINGLE_HOST = HostGroup()
