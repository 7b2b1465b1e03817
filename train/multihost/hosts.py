"""Settings of the hosts of a run, and their group: one process per host, each with some of the devices."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar, cast

from flaxbert.files import JsonValue

Value = TypeVar("Value")
Channel = Literal["run", "stop"]


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Processes that train together; by default a single one, which uses no network."""

    coordinator: str | None = None
    """HOST:PORT at which the other hosts reach host 0; any free port. Give `count` and `index` too."""
    count: int | None = None
    """Number of hosts. If only this is given and it is 1, the process trains alone, however it was launched."""
    index: int | None = None
    """Index of this host, from 0."""
    detect: bool = False
    """Let jax find all three in the environment: SLURM, Open MPI, Kubernetes or Cloud TPU."""
    timeout: int = 120
    """Seconds to wait for the other hosts at the start."""
    hang_timeout: int = 1800
    """Seconds without progress on any host (a step, a batch of an evaluation, a message) after which the run counts as
    hung and ends; more than the longest compilation, and the longest reading of data, take."""
    token_file: Path | None = None
    """File with the secret that hosts present to host 0, the same on all; by default the variable FLAXBERT_HOSTS_TOKEN,
    or one made by host 0, for processes on its machine."""

    def __post_init__(self):
        given = {name: getattr(self, name) for name in ("coordinator", "count", "index")}
        lacking = [f"hosts.{name}" for name, value in given.items() if value is None]
        if self.detect and len(lacking) < 3:
            raise ValueError("give hosts.detect, or hosts.coordinator, hosts.count and hosts.index; not both")
        if lacking and len(lacking) < 3 and given != {"coordinator": None, "count": 1, "index": None}:
            raise ValueError(f"hosts.coordinator, hosts.count and hosts.index go together; not given: {lacking}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"hosts.count is {self.count}; it must be at least 1")
        if self.count is not None and self.index is not None and not 0 <= self.index < self.count:
            raise ValueError(f"hosts.index is {self.index}; allowed: 0 to {self.count - 1}")
        if self.coordinator is not None and not 0 < self._port < 2**16:
            raise ValueError(f"hosts.coordinator is {self.coordinator!r}; it must be HOST:PORT, such as 10.0.0.1:8476")
        for name in ("timeout", "hang_timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"hosts.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def address(self) -> tuple[str, int]:
        """Host name and port of the coordinator; ("", 0) if it is not valid."""
        return (self.coordinator or "").rpartition(":")[0].strip("[]"), self._port

    @property
    def _port(self) -> int:
        host, _, port = (self.coordinator or "").rpartition(":")
        return int(port) if host and port.isascii() and port.isdecimal() and len(port) < 6 else 0


class HostGroup:
    """The group of a single host; `tcp_group.TcpHostGroup` is that of several.

    All hosts must call the same methods in the same order. If one host fails, it ends the others, so that none waits
    for ever.

    Attributes:
        index: index of this host; host 0 decides and writes.
        names: machine names by host index.
        stop_reason: the reason for which a host has called `request_stop`; None if none has.
        on_stop: called with that reason, in another thread, on the hosts that have not called it.
    """

    index: int = 0
    names: tuple[str, ...] = ("",)
    stop_reason: str | None = None
    on_stop: Callable[[str], None] | None = None

    def __enter__(self) -> "HostGroup":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the other hosts; if this host failed, end them instead."""

    def exchange(self, value: Value, *, channel: Channel = "run") -> list[Value]:
        """Return the values of all hosts by index; values must be representable in JSON.

        The order of calls matters within a channel only; "stop" is for the thread that ends the run on request.
        """
        return [value]

    def request_stop(self, reason: str) -> None:
        """Ask all other hosts to end the run: their `on_stop` is called."""

    def leave(self) -> None:
        """Tell the other hosts that this process ends, so that it does not count as lost."""

    def wait_for_leaving(self, seconds: float) -> None:
        """Wait until all other hosts have called `leave`."""

    def share(self, make: Callable[[], Value]) -> Value:
        """Call `make` on host 0 and return its result on all hosts; it must be representable in JSON."""
        values = self.exchange(make() if self.index == 0 else None)
        return cast(Value, values[0])

    def wait(self) -> None:
        """Wait until all hosts have called this method."""
        self.exchange(None)

    def check_same(self, what: str, values: Mapping[str, JsonValue]) -> None:
        """Check, on all hosts, that every host has the values of host 0; `what` is a noun, such as "settings".

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
