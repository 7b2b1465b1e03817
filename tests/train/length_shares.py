"""Metric of models at shares of their FLOPs, batches padded to the length of their own texts; not a test.

python -m tests.train.length_shares configs/sst2_adaptive.py --search.metric accuracy --search.baseline runs/sst2/model

Each layer keeps the same share of the tokens of the layer before, without a search. Rows of a batch have nearly one
length, so that texts lose tokens and not only padding, and FLOPs are those of the lengths of the batches.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from train.command import load_config, parse_flags
from train.data.batches import EvaluationBatches
from train.data.packing import LENGTH_MULTIPLE, choose_padded_sizes
from train.distributed import HostBatch
from train.evaluate import DEV, EvalStep, evaluate
from train.search.evolution import Configuration
from train.search.measure import Measurer
from train.search.run import make_search, with_model
from train.search.settings import SearchConfig
from train.tasks.task import MODEL_FOLDER


@dataclasses.dataclass(frozen=True)
class Constant:
    """Batches by their length, and the configuration of each length in which every layer keeps one share."""

    measurers: dict[int, Measurer]

    @classmethod
    def of(cls, config: SearchConfig, folder: Path) -> "Constant":
        one_length = make_search(with_model(config, folder))[0]
        batches = one_length.task.evaluations[DEV]
        assert isinstance(batches, EvaluationBatches)
        needed = batches.examples.longest(batches.members)
        lengths = choose_padded_sizes(needed, batches.max_length, multiple=LENGTH_MULTIPLE, compile_cost=30)
        groups: dict[int, list[HostBatch]] = {}
        for members in batches.members:
            batch = batches.examples.batch(
                members, size=batches.size, pad_id=batches.pad_id, lengths=lengths, host_shard=batches.host_shard
            )
            groups.setdefault(batch["input_ids"].shape[-1], []).append(batch)
        return cls({length: dataclasses.replace(one_length, batches=own) for length, own in groups.items()})

    def configuration(self, length: int, ratio: float) -> Configuration:
        layers = next(iter(self.measurers.values())).model.config.num_hidden_layers
        kept = tuple(min(length, max(2, math.ceil(length * ratio ** (layer + 1) - 1e-9))) for layer in range(layers))
        return Configuration(tuple(range(layers)), kept)

    def flops(self, ratio: float) -> float:
        return sum(
            own.flops(self.configuration(length, ratio)) * len(own.batches) for length, own in self.measurers.items()
        )

    def ratio(self, share: float) -> float:
        """The largest ratio with at most this share of the FLOPs."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if self.flops(middle) > share * self.flops(1.0) else (middle, high)
        return 1.0 if share == 1 else low

    def steps(self, ratio: float) -> dict[int, EvalStep]:
        return {length: own._eval_step(self.configuration(length, ratio)) for length, own in self.measurers.items()}

    def measure(self, steps: dict[int, EvalStep], metric: str) -> float:
        """The metric over all batches, which are in the order of the task's own evaluation."""
        found = [evaluate(steps[length], own.params, own.batches, own.placement) for length, own in self._items()]
        weights = [sum(float(batch["weight"].sum()) for batch in own.batches) for _, own in self._items()]
        means = {
            name: sum(one.means[name] * weight for one, weight in zip(found, weights, strict=True)) / sum(weights)
            for name in found[0].means
        }
        joined = dataclasses.replace(found[0], means=means, outputs=[out for one in found for out in one.outputs])
        task = self._items()[0][1].task
        return {**means, **task.compute_metrics(DEV, joined, earlier={})}[metric]

    def _items(self) -> list[tuple[int, Measurer]]:
        return sorted(self.measurers.items())


def main(arguments: Sequence[str]) -> None:
    config = parse_flags(SearchConfig(**vars(load_config(Path(arguments[0])))), arguments[1:])
    assert isinstance(config, SearchConfig)
    search = config.search
    assert search.metric is not None
    folders = [search.model or config.run.folder / MODEL_FOLDER, *([search.baseline] if search.baseline else [])]
    models = [Constant.of(config, folder) for folder in folders]
    first = models[0]
    print(f"{jax.devices()[0].device_kind}, batches by length", {n: len(own.batches) for n, own in first._items()})
    for share in (1.0, *search.points):
        ratio = first.ratio(share)
        steps = first.steps(ratio)
        values = [model.measure(steps, search.metric) for model in models]  # of equal sizes: one program for all
        part = first.flops(ratio) / first.flops(1.0)
        print(f"{part:.3f} of FLOPs, ratio {ratio:.3f}: {search.metric} {values}", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main(sys.argv[1:])
