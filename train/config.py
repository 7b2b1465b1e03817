"""The settings of a run: typed, checked when built, turned into flags by tyro, stored with the run as JSON."""

import dataclasses
import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import jax.numpy as jnp
import tyro

from flaxbert import Attention, BertConfig, Remat
from train.distributed import MeshShape
from train.multihost.hosts import Hosts
from train.optim import Optim

if TYPE_CHECKING:
    from train.tasks.task import TaskSettings


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained, and how it is computed."""

    pretrained: Path | None = None
    """A Hugging Face folder to start from; without one, fresh weights of the sizes below."""
    sizes: BertConfig = BertConfig.tiny()
    """Used without `pretrained`; the vocabulary's size is the tokenizer's."""
    dropout: float | None = None
    """Of hidden states and of attention; None for the model's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters stay float32."""
    scan: bool = True
    """One loop over the layers (compiles fast); otherwise unrolled."""
    vocab_multiple: int = 128
    """The vocabulary's axis is padded to a multiple of it, which hardware and devices that share it want."""
    remat: Annotated[Remat, tyro.conf.EnumChoicesFromValues] = Remat.NONE
    """What the backward pass recomputes to save memory."""
    attn_implementation: Annotated[Attention, tyro.conf.EnumChoicesFromValues] = Attention.EAGER
    """pallas: one kernel on TPUs, for lengths that are multiples of 32 up to 512; else, and on others, as eager."""

    def __post_init__(self):
        if not 1 <= self.vocab_multiple <= 2**16:
            raise ValueError(f"vocab_multiple is {self.vocab_multiple}; allowed: 1 to {2**16}")

    @property
    def attributes(self) -> dict[str, Any]:
        """Those of a model class."""
        how = {"scan": self.scan, "remat": self.remat, "vocab_multiple": self.vocab_multiple}
        return {"dtype": jnp.dtype(self.dtype), "attn_implementation": self.attn_implementation, **how}


@dataclasses.dataclass(frozen=True)
class Run:
    """How long, how often, where."""

    folder: Path
    """Checkpoints, metrics, the trained model and the summary go here; a run found here is resumed."""
    batch_size: int = 32
    """Rows a step, over all devices."""
    gradient_accumulation_steps: int = 1
    """Parts of a batch that are computed one after another, to save memory; the gradients are those of the whole."""
    epochs: float | None = None
    """Passes over the data; give this or `steps`."""
    steps: int | None = None
    """Updates; give this or `epochs`."""
    evaluation_batch_size: int | None = None
    """Rows a batch of an evaluation; `batch_size` where None."""
    log_every: int = 50
    """Steps between reports."""
    evaluate_every: int | None = None
    """Steps between evaluations; only at the end where None."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; only at the end where None."""
    keep: int = 2
    """Checkpoints kept."""
    compilation_cache: bool = True
    """Keep compiled programs in the folder, so that the run goes on at once when it is started again."""
    best: str | None = None
    """A figure of evaluations on dev, such as "f1": the run ends with the model of the evaluation where it was best (of
    losses and perplexity the lowest), not with the last one."""
    patience: int | None = None
    """Training stops after so many evaluations without a better one; wants `best`."""
    seed: int = 0
    """Of weights, data order, masks and dropout."""
    seeds: tuple[int, ...] = ()
    """Several runs, one for each of these, in folders of their own; figures are told with mean and deviation."""

    def __post_init__(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give exactly one of epochs ({self.epochs}) and steps ({self.steps})")
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "steps",
            "evaluation_batch_size",
            "log_every",
            "evaluate_every",
            "checkpoint_every",
            "keep",
            "patience",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.epochs is not None and not 0 < self.epochs < 1e6:
            raise ValueError(f"epochs is {self.epochs}; it must be greater than 0")
        for seed in (self.seed, *self.seeds):
            if not 0 <= seed < 2**32:
                raise ValueError(f"seed is {seed}; allowed: 0 to {2**32 - 1}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; each must be there once")
        if self.best is not None and self.evaluate_every is None:
            raise ValueError(f"best is {self.best!r}, but only the end is evaluated: give evaluate_every, too")
        if self.patience is not None and self.best is None:
            raise ValueError(f"patience is {self.patience}, but best does not say of which figure")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Updates of the whole run."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * steps_per_epoch))


# What may change between the two halves of a resumed run without changing what it computes.
_FREE = (
    "run.folder",
    "run.log_every",
    "run.evaluate_every",
    "run.checkpoint_every",
    "run.keep",
    "run.compilation_cache",
    "run.evaluation_batch_size",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
)


# Settings by their former names. A former flag is refused with the new name; a run recorded with it can be resumed.
RENAMED_SETTINGS = {
    "run.keep_programs": "run.compilation_cache",
    "run.micro_batches": "run.gradient_accumulation_steps",
    "task.also": "task.extra_eval",
    "task.also_splits": "task.extra_eval_splits",
    "task.dev_share": "task.validation_split",
}


Task = TypeVar("Task", bound="TaskSettings")


@dataclasses.dataclass(frozen=True)
class Config(Generic[Task]):
    """A whole run; the class of its task decides which flags it has."""

    task: Task
    run: Run
    model: Model = Model()
    optim: Optim = Optim()
    mesh: MeshShape = MeshShape()
    hosts: Hosts = Hosts()

    def to_json(self) -> str:
        """The resolved settings as JSON, for the run's record."""
        return json.dumps(_plain(self), indent=2, ensure_ascii=False) + "\n"

    @property
    def shared(self) -> dict[str, Any]:
        """The settings, by name, that all hosts of a run must have: all but those that say which host this is."""
        return _shared(self.to_json())

    def differences(self, stored: str) -> list[str]:
        """Settings in which a stored run computes something else, as "name: stored -> this one"."""
        old, new = _shared(stored), self.shared
        names = [name for name in sorted(old.keys() | new.keys()) if name not in _FREE]
        return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in names if old.get(n) != new.get(n)]


def _shared(record: str) -> dict[str, Any]:
    settings = {RENAMED_SETTINGS.get(name, name): value for name, value in _flat(json.loads(record)).items()}
    return {name: value for name, value in settings.items() if not name.startswith("hosts.")}


def _plain(value: Any) -> Any:
    """Dataclasses, enums and paths as what JSON has; the class of a task is kept under "kind"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {name: item for key, child in value.items() for name, item in _flat(child, f"{prefix}{key}.").items()}
