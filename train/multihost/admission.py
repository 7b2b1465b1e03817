"""Joining the group of hosts: host 0 waits for the others and turns away whoever does not have the run's token.

Each connection is greeted in a thread of its own, with little time and few bytes, so that strangers at the port neither
end nor slow a run. The port is open only until all hosts have joined.
"""

import collections
import contextlib
import dataclasses
import json
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from flaxbert.files import JsonObject
from train.multihost.run_token import TOKEN_VARIABLE, is_proof, prove
from train.multihost.tcp_group import HOST_LOST, Connection, TcpHostGroup

_VERSION = 2  # of the messages
_GREETING_TIMEOUT = 5.0  # seconds for the greeting of a new connection
_LONGEST_GREETING = 4096  # bytes
_MOST_GREETED = 64  # connections at a time; of more, the oldest is closed
_RETURN_TIMEOUT = 20.0  # seconds in which a host whose connection closed may come again


@dataclasses.dataclass(frozen=True)
class _Guest:
    """A host that has presented the token."""

    index: int
    count: int
    name: str
    challenge: str
    connection: Connection


class _Door:
    """Greets the connections to host 0, each in a thread."""

    def __init__(self, token: str):
        self.guests: queue.SimpleQueue[_Guest] = queue.SimpleQueue()
        self._token, self._lock, self._noted = token, threading.Lock(), False
        self._greeted: collections.deque[socket.socket] = collections.deque()

    def greet(self, accepted: socket.socket, address: str) -> None:
        """Ask a new connection for the token; `guests` has the host if it has it."""
        with self._lock:
            self._greeted.append(accepted)
            oldest = self._greeted.popleft() if len(self._greeted) > _MOST_GREETED else None
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        threading.Thread(target=self._greet, args=(accepted, address), daemon=True).start()

    def _greet(self, accepted: socket.socket, address: str) -> None:
        try:
            guest = self._ask(accepted)
        except (OSError, ValueError, RecursionError) as error:
            if not isinstance(error, _ClosedAtOnce):
                self._note(address)
            accepted.close()
        else:
            self.guests.put(guest)
        with self._lock, contextlib.suppress(ValueError):
            self._greeted.remove(accepted)

    def _ask(self, accepted: socket.socket) -> _Guest:
        deadline, challenge = time.monotonic() + _GREETING_TIMEOUT, secrets.token_hex(16)
        accepted.settimeout(_GREETING_TIMEOUT)
        accepted.sendall(json.dumps({"flaxbert": _VERSION, "challenge": challenge}).encode() + b"\n")
        greeting = json.loads(_read_line(accepted, deadline))
        if not isinstance(greeting, dict):
            raise ConnectionError("not a greeting")
        index, count, name, own = (greeting.get(key) for key in ("index", "count", "name", "challenge"))
        if not is_proof(greeting.get("proof"), self._token, challenge, index, count, name, own):
            accepted.sendall(b'{"stranger": true}\n')
            raise ConnectionError("it does not have the token")
        if not (isinstance(index, int) and isinstance(count, int) and isinstance(name, str) and isinstance(own, str)):
            raise ConnectionError("another version of this program")
        accepted.sendall(b'{"admitted": true}\n')
        return _Guest(index, count, name, own, Connection(accepted))

    def _note(self, address: str) -> None:
        with self._lock:
            first, self._noted = not self._noted, True
        if first:
            os.write(2, f"note: turned away connections without the run's token, first from {address}\n".encode())


class _ClosedAtOnce(ConnectionError):
    """A connection that was closed without a byte, as by programs that look for open ports."""


def _read_line(accepted: socket.socket, deadline: float) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        accepted.settimeout(max(0.001, deadline - time.monotonic()))
        read = accepted.recv(_LONGEST_GREETING)
        if not read:
            raise ConnectionError("closed") if line else _ClosedAtOnce
        line += read
        if len(line) > _LONGEST_GREETING or time.monotonic() > deadline:
            raise ConnectionError("too long")
    return line


@dataclasses.dataclass
class _Arrivals:
    """The hosts that have joined host 0."""

    count: int
    guests: dict[int, _Guest] = dataclasses.field(default_factory=dict)
    gone: dict[int, tuple[str, float]] = dataclasses.field(default_factory=dict)  # (name, time) of those that left

    @property
    def missing(self) -> list[int]:
        return [index for index in range(1, self.count) if index not in self.guests]

    def add(self, guest: _Guest) -> None:
        """Add a host.

        Raises:
            ValueError: its settings contradict those of host 0, or of a host that is already there.
        """
        earlier = self.guests.get(guest.index)
        problem, here = None, socket.gethostname()
        if guest.count != self.count:
            problem = f"{guest.name} was started with --hosts.count {guest.count}, {here} with {self.count}"
        elif not 0 < guest.index < self.count or (earlier is not None and not earlier.connection.closed):
            first = here if earlier is None else earlier.name
            problem = f"--hosts.index {guest.index} was given to {first} and to {guest.name}; each host needs its own"
        if problem is not None:
            self.guests[-1] = guest  # so that it is told, too
            raise ValueError(problem)
        self.guests[guest.index] = guest
        self.gone.pop(guest.index, None)

    def drop_closed(self) -> None:
        """Forget hosts that have disconnected again; raise `_HostGone` if one does not come back."""
        for index in [index for index, guest in self.guests.items() if guest.connection.closed]:
            self.gone[index] = (self.guests.pop(index).name, time.monotonic())
        for index, (name, left) in self.gone.items():
            if time.monotonic() - left > _RETURN_TIMEOUT:
                raise _HostGone(f"host {index} ({name})")

    def tell(self, **message: str) -> None:
        """Send a message to all, and close the connections."""
        for guest in self.guests.values():
            with contextlib.suppress(OSError):
                guest.connection.send(message)
                guest.connection.close()


class _HostGone(Exception):
    """A host that was lost while the hosts joined."""


def accept_hosts(
    listener: socket.socket, count: int, *, seconds: float, token: str, hang_timeout: float
) -> TcpHostGroup:
    """Wait as host 0 until all other hosts have connected to `listener`, which is then closed; return the group.

    A host that was lost meanwhile ends the process.

    Raises:
        ValueError: names hosts that did not connect in time, an index used twice, or a host with another count.
    """
    deadline, door, arrivals = time.monotonic() + seconds, _Door(token), _Arrivals(count)
    try:
        with listener:
            while arrivals.missing:
                listener.settimeout(0.1)
                with contextlib.suppress(OSError):  # a timeout, or too many open files
                    accepted, address = listener.accept()
                    door.greet(accepted, str(address[0]))
                while not door.guests.empty():
                    arrivals.add(door.guests.get())
                arrivals.drop_closed()
                if arrivals.missing and time.monotonic() > deadline:
                    missing = ", ".join(map(str, arrivals.missing))
                    present = f"{count - len(arrivals.missing)} of {count} hosts came within {seconds:.0f} s"
                    raise ValueError(f"{present}; missing: {missing}. Were they started with this coordinator?")
    except ValueError as error:
        arrivals.tell(refused=str(error))
        raise
    except _HostGone as error:
        arrivals.tell(lost=str(error))
        _end_lost(str(error))
    guests = [arrivals.guests[index] for index in range(1, count)]
    names = [socket.gethostname(), *(guest.name for guest in guests)]
    for guest in guests:
        with contextlib.suppress(OSError):  # the group notices it
            guest.connection.send({"names": names, "proof": prove(token, guest.challenge, names)})
    return TcpHostGroup(0, names, {guest.index: guest.connection for guest in guests}, hang_timeout=hang_timeout)


def connect_to_first_host(
    addresses: Sequence[tuple[str, int]],
    index: int,
    count: int,
    *,
    seconds: float,
    token: Callable[[], str | None],
    hang_timeout: float,
) -> TcpHostGroup:
    """Connect as host `index` to host 0, wait until all hosts have connected to it, and return the group.

    `addresses` are (host, port) pairs at which host 0 may be reached; `token` is called for each attempt. If host 0 is
    lost meanwhile, the process ends.

    Raises:
        ValueError: host 0 was not reached in time, refuses this host, or misses another one.
    """
    deadline, lost = time.monotonic() + seconds, False
    where = " or ".join(f"{host}:{port}" for host, port in addresses)
    reason = "no time left"
    while (left := deadline - time.monotonic()) > 0:
        for address in addresses:
            joining = _Joining(index, count, token())
            try:
                connection = Connection(socket.create_connection(address, timeout=min(5.0, max(0.1, left))))
                answer = joining.join(connection, left + _GREETING_TIMEOUT)  # host 0 may wait from a later time on
            except OSError as error:
                reason = str(error)
                if joining.admitted and not lost:
                    deadline, lost = min(deadline, time.monotonic() + _RETURN_TIMEOUT), True
                continue
            if "lost" in answer:
                _end_lost(str(answer["lost"]))
            if "refused" in answer:
                raise ValueError(f"host 0 at {where}: {answer['refused']}")
            return TcpHostGroup(index, answer["names"], {0: connection}, hang_timeout=hang_timeout)
        time.sleep(0.3)
    if lost:
        _end_lost(f"host 0 ({where})")
    raise ValueError(
        f"host 0 was not reached at {where} within {seconds:.0f} s ({reason}), or not all hosts came to it"
    )


@dataclasses.dataclass
class _Joining:
    """One attempt to join host 0."""

    index: int
    count: int
    token: str | None
    admitted: bool = False

    def join(self, connection: Connection, seconds: float) -> JsonObject:
        """Return the last message of host 0 before the run begins.

        Raises:
            OSError: the other side is not host 0 of this run, or was lost.
        """
        challenge = connection.receive(_GREETING_TIMEOUT, limit=_LONGEST_GREETING).get("challenge")
        if self.token is None:
            connection.close()
            raise ConnectionError(f"it asks for the run's token: give all hosts the same {TOKEN_VARIABLE}")
        own, name = secrets.token_hex(16), socket.gethostname()
        proof = prove(self.token, challenge, self.index, self.count, name, own)
        facts = {"index": self.index, "count": self.count, "name": name}
        connection.send({"flaxbert": _VERSION, **facts, "challenge": own, "proof": proof})
        if "admitted" not in connection.receive(_GREETING_TIMEOUT, limit=_LONGEST_GREETING):
            raise ConnectionError(f"it has another token: give all hosts the same {TOKEN_VARIABLE}")
        self.admitted = True
        answer = connection.receive(seconds)
        if "names" in answer and not is_proof(answer.get("proof"), self.token, own, answer["names"]):
            raise ConnectionError("it does not have the run's token")
        return answer


def _end_lost(host: str) -> NoReturn:
    """End the process, because a host was lost while the hosts joined."""
    print(f"stopped: {host} was lost while the hosts joined; start the run again", file=sys.stderr)
    sys.exit(HOST_LOST)
