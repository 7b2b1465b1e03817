"""The work that hosts have begun, by which a host that hangs is noticed."""

import dataclasses
import time


@dataclasses.dataclass
class WorkCount:
    """Number of pieces of work that this process has begun, in the order that all hosts do them in."""

    begun: int = 0


WORK = WorkCount()
"""The batches of training and evaluation of this process, which show the other hosts that it does not hang."""


class ProgressWatch:
    """The work that each host has done, in pieces that all hosts do in the same order, and whether it goes on."""

    def __init__(self, hosts: int, timeout: float):
        self.counts, self.timeout = [0] * hosts, timeout
        self._last, self._changed = list(self.counts), time.monotonic()

    def find_hung(self) -> list[int]:
        """Return the hosts that have done least, if none has done anything for `timeout` seconds."""
        counts, now = list(self.counts), time.monotonic()
        if counts != self._last:
            self._last, self._changed = counts, now
        hangs = now - self._changed > self.timeout
        return [index for index, count in enumerate(counts) if count == min(counts)] if hangs else []
