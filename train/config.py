"""Settings of a run: frozen dataclasses, checked when built, turned into flags by tyro, stored as JSON."""

import dataclasses
import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypedDict, TypeVar

import jax.numpy as jnp
import tyro

from flaxbert import AttentionImplementation, BertConfig, Remat
from flaxbert.files import JsonValue
from train.distillation import Distillation
from train.distributed import MeshShape
from train.length_adaptation import LengthAdaptation
from train.multihost.hosts import Hosts
from train.optim import Optim

if TYPE_CHECKING:
    from train.tasks.task import TaskSettings


def expand_home(settings: object) -> None:
    """Replace "~" at the start of the paths among the fields of a dataclass, as a shell does, but not after "="."""
    for name, value in vars(settings).items():
        if isinstance(value, Path):
            object.__setattr__(settings, name, value.expanduser())


class ModelAttributes(TypedDict):
    """Attributes of a model class that the settings choose, as keyword arguments."""

    dtype: jnp.dtype
    attn_implementation: AttentionImplementation
    scan: bool
    remat: Remat
    vocab_multiple: int


@dataclasses.dataclass(frozen=True)
class Model:
    """The model to train, and how it is computed."""

    pretrained: Path | None = None
    """A model folder, weights file, TensorFlow 1 checkpoint or run to start from; without it, a newly initialised model
    of the sizes below."""
    new_head: bool = False
    """Initialise the head newly, although `pretrained` has one; needed where that was trained for other labels."""
    sizes: BertConfig = BertConfig.tiny()
    """Sizes of the model if `pretrained` is not given; the vocabulary size is taken from the tokenizer."""
    dropout: float | None = None
    """Dropout rate of hidden states and of attention probabilities; None keeps the rates of the model's config."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation; parameters stay float32."""
    scan: bool = True
    """Compile the layers as one loop, which is fast to compile; otherwise as separate layers."""
    vocab_multiple: int = 128
    """Pad the vocabulary axis to a multiple of this, for speed and so that devices can divide it."""
    remat: Annotated[Remat, tyro.conf.EnumChoicesFromValues] = Remat.NONE
    """Activations that the backward pass recomputes to save memory."""
    attn_implementation: Annotated[AttentionImplementation, tyro.conf.EnumChoicesFromValues] = (
        AttentionImplementation.EAGER
    )
    """fused: one kernel on TPUs and NVIDIA GPUs (see `kernels.supports_fused_attention`); eager in all other cases."""

    def __post_init__(self):
        expand_home(self)
        if not 1 <= self.vocab_multiple <= 2**16:
            raise ValueError(f"vocab_multiple is {self.vocab_multiple}; allowed: 1 to {2**16}")

    @property
    def attributes(self) -> ModelAttributes:
        """The settings that are attributes of a model class."""
        return ModelAttributes(
            dtype=jnp.dtype(self.dtype),
            attn_implementation=self.attn_implementation,
            scan=self.scan,
            remat=self.remat,
            vocab_multiple=self.vocab_multiple,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """The length of a run, the folder it writes, and how often it reports, evaluates and saves."""

    folder: Path
    """Folder for checkpoints, metrics, the trained model and the summary; a run found here is resumed."""
    batch_size: int = 32
    """Rows of a batch, over all devices."""
    gradient_accumulation_steps: int = 1
    """Compute each batch in this many parts, one after another, to save memory; the gradients are the same."""
    epochs: float | None = None
    """Passes over the training data; give this or `steps`."""
    steps: int | None = None
    """Optimizer steps; give this or `epochs`."""
    evaluation_batch_size: int | None = None
    """Rows of an evaluation batch; None: `batch_size`."""
    log_every: int = 50
    """Steps between reports."""
    evaluate_every: int | None = None
    """Steps between evaluations; None: evaluate only at the end."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None: save only at the end."""
    keep: int = 2
    """Number of the newest checkpoints to keep."""
    keep_every: int | None = None
    """Keep the checkpoints of steps that are multiples of this, too; None: only the newest, and the best."""
    stop_after_skipped: int = 3
    """Stop after this many updates in a row were skipped, because their loss or gradient was not finite."""
    verify_every: int = 0
    """Compute one step in this many twice, and compare both results and the copies of the state on several devices, to
    find damaged memory and devices that compute wrongly; checkpoints are compared, too. 0: never."""
    ledger_every: int = 100
    """Steps between lines of ledger.jsonl, digests of data and parameters; each checkpoint has one, too."""
    compilation_cache: bool = True
    """Store compiled programs in the folder, so that a restarted run need not compile them again."""
    best: str | None = None
    """Name of a metric on the dev set, such as "f1". The run exports the model of the evaluation with the best value
    (for losses and perplexity the lowest) instead of the last model."""
    patience: int | None = None
    """Stop training after this many evaluations without a better value of `best`."""
    seed: int = 0
    """Seed of initial weights, data order, masks and dropout."""
    scalar_names: tuple[str, ...] = ()
    """Own names of curves in TensorBoard, such as "eval/dev/f1=Val/F1"; the other curves keep their names."""
    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds, each in a subfolder; the summary gives mean and deviation."""

    def __post_init__(self):
        expand_home(self)
        if self.folder == Path():
            raise ValueError(f"folder is {str(self.folder)!r}, the current folder; give one for the files of this run")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give exactly one of epochs ({self.epochs}) and steps ({self.steps})")
        names = ["batch_size", "gradient_accumulation_steps", "steps", "evaluation_batch_size", "log_every"]
        for name in [
            *names,
            "evaluate_every",
            "checkpoint_every",
            "keep",
            "keep_every",
            "stop_after_skipped",
            "ledger_every",
            "patience",
        ]:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.verify_every < 0:
            raise ValueError(f"verify_every is {self.verify_every}; give 0 for never, or a number of steps")
        if self.epochs is not None and not 0 < self.epochs < 1e6:
            raise ValueError(f"epochs is {self.epochs}; it must be greater than 0 and less than 1000000")
        for seed in (self.seed, *self.seeds):
            if not 0 <= seed < 2**32:
                raise ValueError(f"seed is {seed}; allowed: 0 to {2**32 - 1}")
        for pair in self.scalar_names:
            if not all(pair.partition("=")[::2]) or not pair.startswith(("train/", "eval/")):
                raise ValueError(
                    f"scalar_names has {pair!r}; give train/METRIC=NEW or eval/SET/METRIC=NEW, such as "
                    "train/loss=Train/Loss"
                )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; each must be given once")
        if self.best is not None and self.evaluate_every is None:
            raise ValueError(f"best is {self.best!r}, but only the end is evaluated: give evaluate_every")
        if self.patience is not None and self.best is None:
            raise ValueError(f"patience is {self.patience}, but best is not set: give the metric to watch")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps of the whole run."""
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * steps_per_epoch))


# Settings that may change when a run is resumed, because they do not change its result.
_MAY_CHANGE_ON_RESUME = (
    "run.folder",
    "run.log_every",
    "run.scalar_names",
    "run.evaluate_every",
    "run.checkpoint_every",
    "run.keep",
    "run.stop_after_skipped",
    "run.keep_every",
    "run.verify_every",
    "run.ledger_every",
    "run.compilation_cache",
    "run.evaluation_batch_size",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
)


# Settings that name inputs.
_INPUTS = (
    *(f"task.{name}" for name in ("train", "dev", "test", "extra_eval", "exclude", "text", "tokenizer")),
    *(f"task.{name}_split" for name in ("train", "dev", "test")),
    "task.extra_eval_splits",
    "model.pretrained",
    "distillation.teacher",
)

# Former values of a setting, or of the switch that it replaced, as those of today.
FORMER_SWITCHES: dict[str, dict[object, str]] = {
    "model.attn_implementation": {"pallas": "fused"},
    "task.leave_out_incomplete": {False: "error", True: "skip"},
}

# Former names of settings. A former flag is refused with the new name; a run stored with it can be resumed.
RENAMED_SETTINGS = {
    "run.keep_programs": "run.compilation_cache",
    "run.micro_batches": "run.gradient_accumulation_steps",
    "task.also": "task.extra_eval",
    "task.also_splits": "task.extra_eval_splits",
    "task.dev_share": "task.validation_split",
    "task.leave_out_incomplete": "task.bad_rows",
}


TaskSettingsT = TypeVar("TaskSettingsT", bound="TaskSettings")


@dataclasses.dataclass(frozen=True)
class Config(Generic[TaskSettingsT]):
    """All settings of a run; the class of its task decides which flags it has."""

    task: TaskSettingsT
    run: Run
    model: Model = Model()
    optim: Optim = Optim()
    mesh: MeshShape = MeshShape()
    hosts: Hosts = Hosts()
    distillation: Distillation = Distillation()
    length_adaptation: LengthAdaptation = LengthAdaptation()

    def to_json(self) -> str:
        """Return all settings as JSON, as run.json stores them."""
        return json.dumps(_to_plain(self), indent=2, ensure_ascii=False) + "\n"

    @property
    def common_to_hosts(self) -> dict[str, JsonValue]:
        """Settings by name that must be equal on all hosts of a run: all except those that name the host."""
        return _settings_by_name(self.to_json())

    def differences(self, stored: str, *, inputs_by_content: bool = False) -> list[str]:
        """Compare with a stored run.json; describe each setting that would change the run's result, "name: old -> new".

        The stored run may use former names of settings; a setting that it lacks had its default. With
        `inputs_by_content` the settings that name inputs are not compared, because the caller compares their content.
        """
        new = self.common_to_hosts
        defaults = _flatten(_defaults(self))
        old = {name: value for name, value in defaults.items() if name in new} | _settings_by_name(stored)
        free = {*_MAY_CHANGE_ON_RESUME, *(_INPUTS if inputs_by_content else ())}
        if self.run.best is not None:
            free.remove("run.evaluate_every")  # only evaluated models can be the best
        names = [name for name in sorted(old.keys() | new.keys()) if name not in free]
        return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


def _settings_by_name(record: str) -> dict[str, JsonValue]:
    """Read run.json as {"section.name": value}, with current names and without the settings of hosts."""
    stored = _flatten(json.loads(record))
    for name in FORMER_SWITCHES.keys() & stored.keys():
        stored[name] = FORMER_SWITCHES[name].get(stored[name], stored[name])
    settings = {RENAMED_SETTINGS.get(name, name): value for name, value in stored.items()}
    return {name: value for name, value in settings.items() if not name.startswith("hosts.")}


def _to_plain(value: object) -> JsonValue:
    """Convert dataclasses, enums and paths to JSON values; the name of a dataclass is stored under "kind"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _defaults(settings: object) -> dict[str, JsonValue]:
    """Return the default values of settings as JSON values: a later version must keep the meaning of a default."""
    assert dataclasses.is_dataclass(settings)
    found: dict[str, JsonValue] = {"kind": type(settings).__name__}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _defaults(value)
        elif field.default is not dataclasses.MISSING:
            found[field.name] = _to_plain(field.default)
    return found


def _flatten(value: JsonValue, prefix: str = "") -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {name: item for key, child in value.items() for name, item in _flatten(child, f"{prefix}{key}.").items()}
