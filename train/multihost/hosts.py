"""Settings of the hosts of a run, and joining them: one process per host, each with some of the devices.

Only the functions that need jax import it: the processes of `tcp_group.py` by themselves start without.
"""

import dataclasses
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Value = TypeVar("Value")
Channel = Literal["run", "stop"]

# Variables in which launchers say how many processes they started: the launcher, and whether jax knows its cluster.
_PROCESS_COUNTS = {
    "SLURM_STEP_NUM_TASKS": ("srun", True),
    "OMPI_COMM_WORLD_SIZE": ("mpirun", True),
    "PMI_SIZE": ("mpiexec (MPICH, Intel MPI or PMI)", False),
    "MV2_COMM_WORLD_SIZE": ("mpirun_rsh (MVAPICH)", False),
    "JSM_NAMESPACE_SIZE": ("jsrun", False),
    "FLUX_JOB_SIZE": ("flux", False),
    "WORLD_SIZE": ("torchrun or accelerate", False),
    "HOROVOD_SIZE": ("horovodrun", False),
    "JAX_NUM_PROCESSES": ("a launcher of jax", False),
    "SKYPILOT_NUM_NODES": ("SkyPilot", False),
}
_SHARED_TIMEOUT = 10.0  # seconds until a file of one host is visible to all; NFS takes up to three


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
        if self.timeout < 1:
            raise ValueError(f"hosts.timeout is {self.timeout}; it must be at least 1")

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
        values: list[Any] = self.exchange(make() if self.index == 0 else None)
        return values[0]

    def wait(self) -> None:
        """Wait until all hosts have called this method."""
        self.exchange(None)

    def check_same(self, what: str, values: Mapping[str, Json]) -> None:
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


def join_hosts(hosts: Hosts) -> HostGroup:
    """Wait until all hosts of the run have joined, and return their group.

    Call it before any computation: afterwards jax counts the devices of all hosts.

    Raises:
        ValueError: a host is missing (named), or this process was launched together with others without `hosts`.
    """
    if not hosts.detect and hosts.count is None:
        _check_not_launched_with_others()
    if not hosts.detect and hosts.count in (None, 1):
        return SINGLE_HOST
    return _join_detected(hosts) if hosts.detect else _join_given(hosts)


def check_shared_folder(folder: Path, host_group: HostGroup) -> None:
    """Check that all hosts see the folder that host 0 has made.

    Raises:
        ValueError: names the hosts that do not see it.
    """
    if len(host_group.names) == 1:
        return
    mark = folder / host_group.share(lambda: f".shared-{secrets.token_hex(8)}")
    try:
        if host_group.index == 0:
            mark.touch()
        host_group.wait()
        deadline = time.monotonic() + _SHARED_TIMEOUT
        while not (seen := mark.exists()) and time.monotonic() < deadline:
            time.sleep(0.2)
            if folder.is_dir():
                os.listdir(folder)  # makes network file systems refresh their cache
        unaware = [host_group.name(index) for index, sees in enumerate(host_group.exchange(seen)) if not sees]
    finally:
        if host_group.index == 0:
            mark.unlink(missing_ok=True)
    if unaware:
        raise ValueError(
            f"run.folder {folder} of host 0 is not seen by {', '.join(unaware)}; give a folder that all hosts share"
        )


def _check_not_launched_with_others() -> None:
    """Refuse to be one of several processes that would all train the same run in the same folder."""
    launched = {name: os.environ.get(name, "") for name in _PROCESS_COUNTS}
    launched["TPU_WORKER_HOSTNAMES"] = str(len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")))
    for name, tasks in launched.items():
        if tasks.isdecimal() and int(tasks) > 1:
            launcher, detected = _PROCESS_COUNTS.get(name, ("GKE", True))
            join = "--hosts.detect" if detected else "--hosts.coordinator, --hosts.count and --hosts.index"
            raise ValueError(
                f"{launcher} has started {tasks} of these processes ({name}): give {join} to train with all of them, "
                "or --hosts.count 1 if each is a run of its own"
            )


def _join_given(hosts: Hosts) -> HostGroup:
    """Connect our own group first: jax would end the process with a stack trace if a host is missing."""
    from train.multihost import tcp_group

    assert hosts.count is not None and hosts.index is not None
    if hosts.index == 0:
        host_group = tcp_group.accept_hosts(_listener(hosts.address[1]), hosts.count, seconds=hosts.timeout)
    else:
        host_group = tcp_group.connect_to_first_host([hosts.address], hosts.index, hosts.count, seconds=hosts.timeout)
    _initialize_jax(hosts)
    return host_group


def _join_detected(hosts: Hosts) -> HostGroup:
    """Let jax find the hosts in the environment and connect them; then connect our own group."""
    import jax

    from train.multihost import tcp_group

    def give_up() -> None:
        os.write(2, f"error: not all hosts came within {hosts.timeout} s (--hosts.detect)\n".encode())
        os._exit(2)

    timer = threading.Timer(hosts.timeout, give_up)  # jax itself would end with a stack trace
    timer.daemon = True
    timer.start()
    try:
        _initialize_jax(hosts)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"--hosts.detect: jax knows no cluster here ({error}); "
            "give --hosts.coordinator, --hosts.count and --hosts.index"
        ) from None
    finally:
        timer.cancel()
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return SINGLE_HOST
    listener = _listener(0) if index == 0 else None
    addresses = _broadcast_text("" if listener is None else _addresses_text(listener.getsockname()[1]))
    if listener is not None:
        return tcp_group.accept_hosts(listener, count, seconds=hosts.timeout)
    pairs = [pair.split("|") for pair in addresses.split(" ")]
    return tcp_group.connect_to_first_host(
        [(address, int(port)) for address, port in pairs], index, count, seconds=hosts.timeout
    )


def _initialize_jax(hosts: Hosts) -> None:
    import jax

    from train.multihost.tcp_group import SILENCE

    on_terminate = signal.getsignal(signal.SIGTERM)
    timeout = round(SILENCE) + 10  # longer than ours, because our message names the lost host
    jax.distributed.initialize(
        initialization_timeout=hosts.timeout + 30,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
        coordinator_address=hosts.coordinator,
        num_processes=hosts.count,
        process_id=hosts.index,
        cluster_detection_method=None if hosts.detect else "deactivate",
    )
    # jax installs its own handler of SIGTERM, which would keep the process alive.
    signal.signal(signal.SIGTERM, on_terminate or signal.SIG_DFL)


def _listener(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        raise ValueError(f"hosts.coordinator: cannot listen on port {port} here ({error}); choose another") from None


def _addresses_text(port: int) -> str:
    """Return "ADDRESS|PORT" for each address of this machine, loopback addresses last."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        found = set()
    addresses = sorted(found, key=lambda address: address.startswith(("127.", "::1"))) or ["127.0.0.1"]
    return " ".join(f"{address}|{port}" for address in addresses)


def _broadcast_text(text: str) -> str:
    """Return host 0's text, at most 1024 bytes, on all hosts."""
    import numpy as np
    from jax.experimental import multihost_utils

    message = np.frombuffer(text.encode()[:1024].ljust(1024, b"\0"), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(message)).astype(np.uint8).tobytes().rstrip(b"\0").decode()
