"""SIGTERM and SIGINT: save the run within one step, and exit with the code that asks for a new start.

A thread saves and ends the process, because the main thread may be compiling, evaluating or waiting for data for
minutes. Several hosts agree on the programs that they still run, so that all save the same step. Only the standard
library is imported here, because signals are taken before the imports of a run, which take seconds.
"""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from train.multihost.hosts import SINGLE_HOST, HostGroup

PREEMPTED = 75
"""Exit code of a run that was ended by a signal: EX_TEMPFAIL, start it again."""
# Seconds that host 0 waits for the other hosts, which jax would end with a stack trace if they lost its service.
_LEAVE_TIMEOUT, _LEAVE_DELAY = 30.0, 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """The end of a run on request: save and exit. Without `listen`, signals have their usual effects.

    The main thread announces each program that all hosts run together (`launching`). When the run is asked to end, it
    starts no more of them than the host that is farthest. Nothing runs then, and the state is that of one step.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._started, self._finished, self._limit = 0, 0, math.inf  # programs
        self._failed = False
        self._save: Callable[[], str] | None = None
        self._host_group = SINGLE_HOST
        self._ending: threading.Thread | None = None

    def listen(self) -> "Preemption":
        """Take SIGTERM and SIGINT from now on; a second one ends the process at once. Call it in the main thread."""
        self._woken, wakes = socket.socketpair()
        wakes.setblocking(False)
        # Python writes the number of a signal at once, although its handlers wait for the main thread.
        signal.set_wakeup_fd(wakes.detach(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._read_signals, name="signals", daemon=True).start()
        return self

    @contextlib.contextmanager
    def of_hosts(self, host_group: HostGroup) -> Iterator[None]:
        """Context in which a signal to one host of the group ends all of them."""
        self._host_group, host_group.on_stop = host_group, self._begin
        if host_group.stop_reason is not None:  # it came before
            self._begin(host_group.stop_reason)
        try:
            yield
        except BaseException:
            self._fail()
            raise
        # Another host may still need this one to agree.
        self.wait_if_ending()

    @contextlib.contextmanager
    def saving(self, save: Callable[[], str]) -> Iterator[None]:
        """Context in which `save` is called before the process ends; it returns what to print.

        It is called in another thread, while no program of `launching` runs.
        """
        before, self._save = self._save, save
        try:
            yield
        except BaseException:
            self._fail()
            raise
        self.wait_if_ending()
        self._save = before

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """Context of a program that all hosts run; it does not begin after the run was asked to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._started < self._limit)
            self._started += 1
        yield
        with self._changed:
            self._finished += 1
            self._changed.notify_all()

    def wait_if_ending(self) -> None:
        """If the run was asked to end, and the main thread has not failed since, wait for the end of the process."""
        if self._ending is not None and not self._failed:
            self._ending.join()

    def _fail(self) -> None:
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def _read_signals(self) -> None:
        reason, group = self._next_signal().name, self._host_group
        if len(group.names) > 1:
            reason += f" on {group.name(group.index)}"
        self._begin(reason)
        group.request_stop(reason)
        _exit(128 + self._next_signal())

    def _next_signal(self) -> signal.Signals:
        while (number := self._woken.recv(1)[0]) not in _SIGNALS:
            pass
        return signal.Signals(number)

    def _begin(self, reason: str) -> None:
        """Begin to end the run, unless another host or a signal has begun."""
        with self._changed:
            if self._ending is not None:
                return
            self._limit = self._started
            self._ending = threading.Thread(target=self._end, args=(reason,), name="preemption", daemon=True)
        self._ending.start()

    def _end(self, reason: str) -> None:
        try:
            limit = max(self._host_group.exchange(self._started, channel="stop"))
            with self._changed:
                self._limit = limit
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._finished >= limit or self._failed)
            if self._failed:
                return  # the main thread reports its error
            done = "nothing to save yet" if self._save is None else self._save()
            self._host_group.exchange(None, channel="stop")
            if self._host_group.index == 0:
                self._host_group.wait_for_leaving(_LEAVE_TIMEOUT)
            self._host_group.leave()
        except Exception as error:
            os.write(2, f"stopped: {reason}, but the run could not be saved: {error}\n".encode())
            _exit(getattr(error, "exit_code", 1))
        if self._host_group.index == 0:
            print(f"preempted by {reason}: {done}; start the run again, and it goes on from there", flush=True)
            time.sleep(_LEAVE_DELAY if len(self._host_group.names) > 1 else 0.0)
        _exit(PREEMPTED)


def _exit(code: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if sys.stdout.isatty():
        os.write(1, b"\x1b[?25h")  # show the cursor again, which the progress bar hides
    os._exit(code)
