"""A search, from the settings to the front. Read it from top to bottom."""

import dataclasses
import time
from pathlib import Path

import jax

from flaxbert import PreTrainedModel
from flaxbert.families import architecture_of
from train import run_folder
from train.data.batches import EvaluationBatches
from train.distributed import Placement
from train.evaluate import DEV, lower_is_better
from train.sandwich import HEADS
from train.search.evolution import (
    Configuration,
    Measurement,
    Measurements,
    Space,
    evolve,
    smallest_configuration,
)
from train.search.front import FRONT_FILE, PointEntry, SearchFacts, write_front
from train.search.measure import Measurer, Record
from train.search.settings import Search, SearchConfig
from train.tasks.task import MODEL_FOLDER, Task

_ONE_LENGTH = 10**9  # the compile cost of a second length of batches


def run_search(config: SearchConfig) -> Path:
    """Search, write front.json and front.png into the folder of the search, and return that of front.json.

    Raises:
        FileNotFoundError, ValueError: there is no adapted model, or the settings or data are wrong.
    """
    settings = config.search
    folder = settings.folder or config.run.folder / "search"
    config = with_model(config, settings.model or config.run.folder / MODEL_FOLDER)
    measurer, space, smallest = make_search(config)
    metric = _metric(config, measurer.task)
    subject = {
        **run_folder.input_digests(config, measurer.task),
        "dev_rows": config.task.dev_rows,  # type: ignore[attr-defined]
        "length": space.length,
        "batch size": len(measurer.batches[0]["input_ids"]),
        "cost": f"latency on {jax.devices()[0].device_kind}" if settings.cost == "latency" else "flops",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.locked(folder, first_host=True):
        progress = Progress(settings, measurer, Record(folder / "search.json", subject), metric, space)
        rows = sum(int(batch["weight"].sum()) for batch in measurer.batches)
        print(f"{metric} of {rows} rows of {space.length} tokens against {settings.cost}; {folder}", flush=True)
        measured = evolve(settings, space, smallest, progress.measure, report=progress.report)
        named = name_points(settings, space.full, measured)
        entries = {one: progress.entry(one) for one in measured}
        for one in named.values():
            entries[one]["compiled_flops"] = measurer.compiled_flops(one)
        if settings.baseline is not None:
            baseline = make_search(with_model(config, settings.baseline))[0]
            for one in named.values():
                entries[one]["baseline"] = baseline.measure(one, timed=False).metrics[metric]
        facts = SearchFacts(metric=metric, cost=settings.cost, length=space.length, model=str(config.model.pretrained))
        for line in write_front(folder, facts, measured, named, entries):
            print(line, flush=True)
        least = min(found.cost for found in measured.values()) / measured[space.full].cost
        for name in (f"{share:.0%}" for share in settings.points):
            if name not in named:
                print(f"no point {name}: the cheapest configuration has {least:.1%} of the {settings.cost}", flush=True)
    return folder / FRONT_FILE


def with_model(config: SearchConfig, folder: Path) -> SearchConfig:
    """Return the config of a search on the model of a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such model; train it first (python -m train), or give --search.model")
    # Unrolled, because a scan of all layers counts as one in the compiler's FLOPs.
    model = dataclasses.replace(config.model, pretrained=folder, new_head=False, scan=False)
    return dataclasses.replace(config, model=model)


def make_search(config: SearchConfig) -> tuple[Measurer, Space, Configuration]:
    """Read the data and the model; return them with the space of configurations and the smallest one.

    Raises:
        FileNotFoundError, ValueError: the settings or data are wrong, or not those of a length-adaptive model.
    """
    if config.hosts.detect or config.hosts.coordinator is not None:
        raise ValueError("a search runs on one host; leave the flags --hosts.* out")
    settings, placement = config.search, Placement.of(config.mesh)
    placement.check_rows("evaluation_batch_size", config.run.evaluation_batch_size or config.run.batch_size)
    task: Task = config.task.prepare(config)
    if DEV not in task.evaluations or not task.has_labels(DEV):
        raise ValueError("a search needs labelled examples that were not trained on: give --task.dev")
    pretrained = config.model.pretrained
    assert pretrained is not None
    model, params = task.load_model(pretrained, config, placement)
    if not isinstance(model, PreTrainedModel) or architecture_of(model).head not in HEADS:
        raise ValueError(f"{type(config.task).__name__} is not length-adaptive; allowed: classification, tags, answers")
    batches = task.evaluations[DEV]
    assert isinstance(batches, EvaluationBatches)
    batches = list(dataclasses.replace(batches, programs=_ONE_LENGTH))
    measurer = Measurer(task, model, params, batches, placement)
    layers, length = model.config.num_hidden_layers, measurer.length
    smallest = smallest_configuration(layers, length, length_drop=config.length_adaptation.length_drop)
    full = Configuration.full(layers, length)
    flops = measurer.flops(full)
    least = measurer.flops(smallest) if settings.min_flops is None else settings.min_flops * flops
    return measurer, Space(layers, length, measurer.flops, least, settings.max_flops * flops), smallest


@dataclasses.dataclass
class Progress:
    """The measurements of a search, which are recorded and printed."""

    settings: Search
    measurer: Measurer
    record: Record
    metric: str
    space: Space
    count: int = 0

    def measure(self, configuration: Configuration) -> Measurement:
        """Return the recorded measurement, or measure and record it."""
        timed = self.settings.cost == "latency"
        found, started = self.record.get(configuration, timed=timed), time.perf_counter()
        self.count += 1
        if found is None:
            found = self.measurer.measure(configuration, timed=timed)
            self.record.add(configuration, found)
            share = self.measurer.flops(configuration) / self.measurer.flops(self.space.full)
            print(
                f"{self.count}: {self.metric} {found.metrics[self.metric]:.4f}, {share:.1%} of FLOPs, lengths "
                f"{' '.join(map(str, configuration.lengths))} ({time.perf_counter() - started:.1f} s)",
                flush=True,
            )
        value, flops = found.metrics[self.metric], self.measurer.flops(configuration)
        score = -value if lower_is_better(self.metric) else value
        return Measurement(score, flops if found.time_share is None or not timed else found.time_share, flops)

    def report(self, number: int, measured: Measurements) -> None:
        """Print the best configurations after a round."""
        full = measured[self.space.full]
        named = name_points(self.settings, self.space.full, measured)
        shown = [
            f"{name} {abs(measured[one].score):.4f} at {measured[one].cost / full.cost:.1%}"
            for name, one in named.items()
        ]
        print(f"round {number} of {self.settings.iterations}: {self.metric} {', '.join(shown)}", flush=True)

    def entry(self, configuration: Configuration) -> PointEntry:
        """Return the entry of a configuration in front.json."""
        found = self.record.get(configuration, timed=False)
        assert found is not None
        model, flops = self.measurer.model, self.measurer.flops(configuration)
        keep_cls = model.config.always_keep_cls_token
        return {
            "layer_config": list(configuration.layers),
            "length_config": list(configuration.lengths),
            "always_keep_cls_token": model.keeps_cls_token if keep_cls is None else keep_cls,
            "metrics": dict(found.metrics),
            "flops": flops,
            "flops_share": flops / self.measurer.flops(self.space.full),
            "seconds": found.seconds,
            "time_share": found.time_share,
        }


def name_points(settings: Search, full: Configuration, measured: Measurements) -> dict[str, Configuration]:
    """Return the full model, the best configuration, and the best one within each share of the full model's cost."""

    def best(share: float) -> Configuration | None:
        within = [one for one, found in measured.items() if found.cost <= share * measured[full].cost]
        return max(within, key=lambda one: (measured[one].score, -measured[one].cost), default=None)

    points = {"full": full, "best": best(float("inf")), **{f"{share:.0%}": best(share) for share in settings.points}}
    return {name: one for name, one in points.items() if one is not None}


def _metric(config: SearchConfig, task: Task) -> str:
    """Return the metric to search for."""
    metric = config.search.metric or config.run.best
    if metric not in task.metric_names:
        raise ValueError(f"metric is {metric!r}; give --search.metric, one of {', '.join(task.metric_names)}")
    return metric
