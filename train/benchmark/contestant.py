"""What a benchmark times: the same calls for both frameworks."""

import abc
import dataclasses


@dataclasses.dataclass
class Contestant(abc.ABC):
    """One way to compute a workload.

    Attributes:
        name: in the table.
        compile_seconds: of the train step and of the forward pass, once they are made; 0 where nothing is compiled.
    """

    name: str
    compile_seconds: dict[str, float] = dataclasses.field(default_factory=dict, init=False)

    @abc.abstractmethod
    def loss(self) -> float:
        """Of the batch and the first weights, without dropout."""

    @abc.abstractmethod
    def prepare(self, kind: str) -> None:
        """Compiles "train" or "forward", and runs it until it runs as it will."""

    @abc.abstractmethod
    def run(self, kind: str, steps: int) -> float:
        """Seconds that so many of them take, until the last is done."""

    @abc.abstractmethod
    def peak_bytes(self, kind: str) -> int | None:
        """Of device memory; None where that cannot be told."""
