"""Many hosts of a run, linked by TCP: what they tell each other, and which of them is lost.

jax's own service does not say which host died, needs seconds to notice, and ends the process with a trace. Here every
host has one connection to host 0. A process that dies closes it at once, whatever its main thread was doing; a machine
that is gone or frozen is known by its silence. Messages are lines of JSON, and nothing else is done with them.
"""

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from train.multihost.host_group import HostGroup

HOST_LOST = 3  # exit code
SILENCE = 15.0  # seconds after which a host that says nothing is lost
_BEAT = 2.0
_GREETING = 5.0  # seconds that a stranger may keep host 0 waiting
_NEWS = 1.0  # seconds by which a failure elsewhere is known here, when it makes this host fail too
_LINE = 2**28  # bytes
_VERSION = 1


class Connection:
    """A connection to another host."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._reader, self._writing = connection, connection.makefile("rb"), threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message; OSError where the other side is gone."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._writing:
            self._socket.sendall(line)

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next message; OSError where none comes in time, the other side is gone, or what it says is no message."""
        self._socket.settimeout(seconds)
        line = self._reader.readline(_LINE)
        if not line.endswith(b"\n"):
            raise ConnectionError("its connection closed")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ConnectionError("it sent what is no message")
        return message

    @property
    def closed(self) -> bool:
        """Whether the other side has left, of a connection on which nothing is to come."""
        self._socket.setblocking(False)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return not isinstance(error, BlockingIOError)
        finally:
            self._socket.settimeout(SILENCE)

    def close(self) -> None:
        """Closes the connection; what was sent still arrives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.close()
        self._socket.close()


class TcpHostGroup(HostGroup):
    """The hosts of a run, host 0 linked to all others and those to it."""

    def __init__(self, index: int, names: Sequence[str], connections: Mapping[int, Connection]):
        """Begins to watch the connections, by the index of the host at the other end."""
        self.index, self.names, self._connections = index, tuple(names), connections
        self._inbox = {other: queue.SimpleQueue() for other in connections}
        self._leaving, self._ending = threading.Event(), threading.Lock()
        for other in connections:
            threading.Thread(target=self._watch, args=(other,), name=f"host {other}", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def exchange(self, value: Any) -> list[Any]:
        """The value of every host; whoever is lost meanwhile ends this process."""
        if self.index:
            self._connections[0].send({"value": value})
            return self._inbox[0].get()
        values = [value] + [self._inbox[other].get() for other in sorted(self._connections)]
        for connection in self._connections.values():
            connection.send({"value": values})
        return values

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self.wait()
        else:
            time.sleep(_NEWS)  # is it the end of another host that failed this one? Then that is the news
            # The same error may have come to all: each then says it itself.
            said = str(error).strip() or "interrupted"
            if not isinstance(error, FileNotFoundError | ValueError | FloatingPointError):
                said = f"{type(error).__name__}: {said}"
            code = 2 if isinstance(error, FileNotFoundError | ValueError) else 1
            self._leaving.set()  # before: those that are told end, and are not lost
            self._tell({"end": f"{self.name(self.index)} failed: {said}", "code": code})
        self._leaving.set()
        self._tell({"leaving": True})

    def _tell(self, message: Mapping[str, Any], *, without: int | None = None) -> None:
        for other, connection in self._connections.items():
            if other != without:
                with contextlib.suppress(OSError):  # whoever is gone need not be told
                    connection.send(message)

    def _beat(self) -> None:
        while not self._leaving.wait(_BEAT):
            self._tell({})

    def _watch(self, other: int) -> None:
        try:
            while True:
                message = self._connections[other].receive(SILENCE)
                if self._leaving.is_set():
                    return
                if "value" in message:
                    self._inbox[other].put(message["value"])
                elif "end" in message:
                    self._end(str(message["end"]), int(message["code"]), told_by=other)
                elif "leaving" in message:
                    return
        except (OSError, ValueError, TypeError) as error:
            if not self._leaving.is_set():
                why = f"silent for {SILENCE:.0f} s" if isinstance(error, TimeoutError) else str(error)
                lost = f"{self.name(other)} was lost: {why}; start the run again, it goes on from its last checkpoint"
                self._end(lost, HOST_LOST, told_by=other)

    def _end(self, why: str, code: int, *, told_by: int) -> NoReturn:
        """Ends this process, whatever its other threads wait for, and the others."""
        self._ending.acquire()  # for good: the first reason is the one
        os.write(2, f"stopped: {why}\n".encode())  # sys.stderr may be locked by a thread that will not let go
        if self.index == 0:
            self._tell({"end": why, "code": code}, without=told_by)
            time.sleep(0.2)  # it is read before the connections close
        if sys.stdout.isatty():
            os.write(1, b"\x1b[?25h")  # the bar had hidden the cursor
        os._exit(code)


def accept_hosts(listener: socket.socket, count: int, *, seconds: float) -> TcpHostGroup:
    """Host 0 of `count`, when all others have come to `listener`, which is closed then.

    Raises:
        ValueError: who did not come in time, or came twice, or counts the hosts otherwise.
    """
    deadline = time.monotonic() + seconds
    connections: dict[int, Connection] = {}
    names = {0: socket.gethostname()}
    try:
        with listener:
            while _drop_closed(connections, names) < count:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection = Connection(listener.accept()[0])
                except TimeoutError:
                    missing = ", ".join(str(index) for index in range(count) if index not in names)
                    came = f"{len(names)} of {count} hosts came within {seconds:.0f} s"
                    raise ValueError(f"{came}; not so: {missing}. Were they started with this coordinator?") from None
                with contextlib.suppress(OSError):  # a stranger
                    _admit(connection, count, connections, names)
    except ValueError as error:
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.send({"refused": str(error)})
                connection.close()
        raise
    ordered = [names[index] for index in range(count)]
    for connection in connections.values():
        connection.send({"names": ordered})
    return TcpHostGroup(0, ordered, connections)


def _drop_closed(connections: dict[int, Connection], names: dict[int, str]) -> int:
    """How many hosts are here, those left out that have gone again."""
    for index in [index for index, connection in connections.items() if connection.closed]:
        del connections[index], names[index]
    return len(names)


def _admit(connection: Connection, count: int, connections: dict[int, Connection], names: dict[int, str]) -> None:
    """Takes a host in."""
    greeting = connection.receive(_GREETING)
    index, others, name = (greeting.get(key) for key in ("index", "count", "name"))
    if greeting.get("flaxbert") != _VERSION or not isinstance(index, int) or not isinstance(name, str):
        raise ConnectionError("not one of ours")
    earlier = connections.pop(index, None)
    connections[index] = connection
    problem = None
    if others != count:
        problem = f"{name} was started with --hosts.count {others}, {names[0]} with {count}"
    elif not 0 < index < count or (earlier is not None and not earlier.closed):
        there = names.get(index, names[0])
        problem = f"--hosts.index {index} was given to {there} and to {name}; each host needs its own"
    if problem is not None:
        if earlier is not None:
            earlier.send({"refused": problem})
        raise ValueError(problem)
    names[index] = name


def connect_to_first_host(
    addresses: Sequence[tuple[str, int]], index: int, count: int, *, seconds: float
) -> TcpHostGroup:
    """Host `index` of `count`, when all have come to host 0, which is at one of the addresses.

    Raises:
        ValueError: it is not there in time, or not all hosts are, or it refuses this one.
    """
    deadline = time.monotonic() + seconds
    where = " or ".join(f"{host}:{port}" for host, port in addresses)
    greeting = {"flaxbert": _VERSION, "index": index, "count": count, "name": socket.gethostname()}
    why = "no time left"
    while time.monotonic() < deadline:
        for address in addresses:
            left = deadline - time.monotonic()
            try:
                connection = Connection(socket.create_connection(address, timeout=min(5.0, max(0.1, left))))
                connection.send(greeting)
                answer = connection.receive(left + _GREETING)  # host 0's own time ends later, if it began to wait later
            except OSError as error:
                why = str(error)
                continue
            if "refused" in answer:
                raise ValueError(f"host 0 at {where}: {answer['refused']}")
            return TcpHostGroup(index, answer["names"], {0: connection})
        time.sleep(0.3)
    raise ValueError(f"host 0 was not reached at {where} within {seconds:.0f} s ({why}), or not all hosts came to it")
