"""Several hosts connected by TCP: they exchange values, and detect which host was lost.

jax's own service does not name the host that died, needs seconds to notice, and ends the process with a stack trace.
Here every host has one connection to host 0. The system closes it as soon as a process dies, whatever its main thread
was doing; a machine that crashed or froze is detected by a timeout. Messages are JSON lines and are never executed.
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
from typing import NoReturn, get_args

from flaxbert.files import JsonObject
from train.multihost.hosts import Channel, HostGroup, Value
from train.multihost.progress import WORK, ProgressWatch
from train.preemption import PREEMPTED

HOST_LOST = 3  # exit code of a host that lost another one
SILENCE = 15.0  # seconds without a message after which a host counts as lost
_HEARTBEAT = 2.0  # seconds between messages that only show that the host is alive
_FAILURE_DELAY = 1.0  # seconds to wait for the report of another host that failed first
_LONGEST_MESSAGE = 2**28  # bytes


class Connection:
    """A connection to another host."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._reader, self._writing = connection, connection.makefile("rb"), threading.Lock()

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message; raise OSError if the other side is gone."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._writing:
            self._socket.sendall(line)

    def receive(self, seconds: float, *, limit: int = _LONGEST_MESSAGE) -> JsonObject:
        """Return the next message; raise OSError after a timeout, a closed connection or malformed data.

        `limit` is the greatest length of the message in bytes.
        """
        self._socket.settimeout(seconds)
        try:
            line = self._reader.readline(limit)
        except ConnectionResetError:  # closed with data of ours unread, as by a process that was killed
            line = b""
        if not line.endswith(b"\n"):
            raise ConnectionError("its connection closed")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ConnectionError("it sent data that is not a message")
        return message

    @property
    def closed(self) -> bool:
        """True if the other side has closed the connection; use it only when no message is expected."""
        self._socket.setblocking(False)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return not isinstance(error, BlockingIOError)
        finally:
            self._socket.settimeout(SILENCE)

    def close(self) -> None:
        """Close the connection; messages already sent still arrive."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.close()
        self._socket.close()


class TcpHostGroup(HostGroup):
    """A group of several hosts: host 0 is connected to all others, which are connected to it alone."""

    def __init__(self, index: int, names: Sequence[str], connections: Mapping[int, Connection], *, hang_timeout: float):
        """Start to read from the connections, given by the index of the host at the other end.

        A run without progress for `hang_timeout` seconds is ended.
        """
        self._watch = ProgressWatch(len(names), hang_timeout)
        self.index, self.names, self._connections = index, tuple(names), connections
        self._inbox = {(other, channel): queue.SimpleQueue() for other in connections for channel in get_args(Channel)}
        self._leaving, self._ending = threading.Event(), threading.Lock()
        self._readers = [
            threading.Thread(target=self._read_messages, args=(other,), name=f"host {other}", daemon=True)
            for other in connections
        ]
        for reader in self._readers:
            reader.start()
        threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()

    def exchange(self, value: Value, *, channel: Channel = "run") -> list[Value]:
        """Return the values of all hosts by index; if a host is lost meanwhile, this process ends."""
        WORK.begun += 1
        if self.index:
            self._connections[0].send({"value": value, "channel": channel})
            return self._inbox[0, channel].get()
        values = [value] + [self._inbox[other, channel].get() for other in sorted(self._connections)]
        for connection in self._connections.values():
            connection.send({"value": values, "channel": channel})
        return values

    def request_stop(self, reason: str) -> None:
        """Ask all other hosts to end the run: their `on_stop` is called."""
        self._send_to_all({"stop": reason})

    def leave(self) -> None:
        """Tell the other hosts that this process ends, so that it does not count as lost."""
        self._leaving.set()
        self._send_to_all({"leaving": True})

    def wait_for_leaving(self, seconds: float) -> None:
        """Wait until all other hosts have called `leave`."""
        deadline = time.monotonic() + seconds
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self.wait()
        else:
            time.sleep(_FAILURE_DELAY)  # if another host failed first, its message ends this process meanwhile
            reason = str(error).strip() or "interrupted"
            code = getattr(error, "exit_code", 2 if isinstance(error, FileNotFoundError | ValueError) else 1)
            if code == 1 and not isinstance(error, FloatingPointError):
                reason = f"{type(error).__name__}: {reason}"
            self._leaving.set()  # first, because the other hosts end now and are not lost
            self._send_to_all({"end": f"{self.name(self.index)} failed: {reason}", "code": code})
        self.leave()

    def _send_to_all(self, message: Mapping[str, object], *, except_to: int | None = None) -> None:
        for other, connection in self._connections.items():
            if other != except_to:
                with contextlib.suppress(OSError):  # a host that is gone needs no message
                    connection.send(message)

    def _send_heartbeats(self) -> None:
        """Tell the other hosts that this one is alive; on host 0, end the run if it hangs."""
        while not self._leaving.wait(_HEARTBEAT):
            self._watch.counts[self.index] = WORK.begun
            self._send_to_all({"progress": WORK.begun})
            hung = self._watch.find_hung() if self.index == 0 else []
            if hung:
                names = ", ".join(map(self.name, hung))
                verb = "hangs" if len(hung) == 1 else "hang"
                seconds = f"no progress for {self._watch.timeout:.0f} s (--hosts.hang-timeout)"
                why = f"{names} {verb}: {seconds}; start the run again, it goes on from its last checkpoint"
                self._end_process(why, PREEMPTED, reported_by=0)

    def _read_messages(self, other: int) -> None:
        try:
            while True:
                message = self._connections[other].receive(SILENCE)
                if self._leaving.is_set():
                    return
                if "value" in message:
                    self._inbox[other, message["channel"]].put(message["value"])
                elif "stop" in message:
                    self._take_stop(str(message["stop"]), sent_by=other)
                elif "end" in message:
                    self._end_process(str(message["end"]), int(message["code"]), reported_by=other)
                elif "progress" in message:
                    self._watch.counts[other] = int(message["progress"])
                elif "leaving" in message:
                    return
        except (OSError, ValueError, TypeError, KeyError) as error:
            if not self._leaving.is_set():
                silent = isinstance(error, TimeoutError)
                why = f"silent for {SILENCE:.0f} s" if silent else str(error)
                lost = f"{self.name(other)} was lost: {why}; start the run again, it goes on from its last checkpoint"
                self._end_process(lost, PREEMPTED if silent else HOST_LOST, reported_by=other)

    def _take_stop(self, reason: str, *, sent_by: int) -> None:
        if self.index == 0:
            self._send_to_all({"stop": reason}, except_to=sent_by)
        self.stop_reason = reason
        if self.on_stop is not None:
            self.on_stop(reason)

    def _end_process(self, why: str, code: int, *, reported_by: int) -> NoReturn:
        """End this process, whatever its other threads are doing, and the other hosts."""
        self._ending.acquire()  # never released: only the first reason counts
        os.write(2, f"stopped: {why}\n".encode())  # sys.stderr may be locked by a thread that waits
        if self.index == 0:
            self._send_to_all({"end": why, "code": code}, except_to=reported_by)
            time.sleep(0.2)  # time to read the message before the connections close
        if sys.stdout.isatty():
            os.write(1, b"\x1b[?25h")  # show the cursor again, which the progress bar hides
        os._exit(code)
