"""`BertConfig`: the numbers that define a BERT, checked when built."""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypedDict, cast

import numpy as np

from flaxbert.functional import ACTIVATIONS, LEARNED_ACTIVATIONS

POSITION_TYPES = ("absolute", "relative_key", "relative_key_query")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


class AdaptiveArguments(TypedDict, total=False):
    """Layers that run and tokens that they keep, as in `BertModel.__call__`.

    `transformers` does not have these fields; config.json has them only where they are given.
    """

    layer_config: Sequence[int] | None
    length_config: Sequence[int] | None
    always_keep_cls_token: bool | None


ADAPTIVE_FIELDS = tuple(AdaptiveArguments.__annotations__)


def given_adaptive_arguments(holder: object) -> AdaptiveArguments:
    """Return the fields of a configuration, or of other settings with these names, that are neither None nor empty."""
    values = {name: getattr(holder, name) for name in ADAPTIVE_FIELDS}
    return AdaptiveArguments(**{name: value for name, value in values.items() if value not in (None, ())})


# Far beyond any BERT, near enough that a hostile file cannot make a loop over names run for hours.
_LIMITS = {"num_hidden_layers": 1024, "num_attention_heads": 65536, "num_labels": 2**20}
_SIZE_LIMIT = 2**28
_LARGEST_REAL = 1e30


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of Hugging Face's BERT configuration that change the mathematics, under their names.

    `id2label` may be given as a mapping or a sequence and is kept as a tuple of names; `num_labels` follows
    it. `pruned_heads` may be given as a mapping from layers to heads, and is kept as sorted pairs (layer, heads); the
    numbers are those of the unpruned model. `unused` holds the keys of a config.json that were not interpreted.
    Defaults are BERT-base, uncased.

    Raises:
        ValueError: a value is impossible; the message names the field, the value and what is allowed.
    """

    model_type: ClassVar[str] = "bert"
    """The family, as "model_type" of config.json names it."""
    fixed_fields: ClassVar[Mapping[str, object]] = {}
    """Settings of BERT that the family lacks, with the only value of each; they are no keys of its config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12  # not flax's 1e-6: the published weights were trained with this one
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    pruned_heads: Any = ()  # once built a tuple of (layer, tuple of heads)
    chunk_size_feed_forward: int = 0  # positions that the feed-forward half computes at a time; 0 for all
    # Defaults of the call arguments; once built tuples, or None for all layers and all tokens.
    layer_config: Sequence[int] | None = None
    length_config: Sequence[int] | None = None
    always_keep_cls_token: bool | None = None
    problem_type: str | None = None
    num_labels: Any = None  # once built a whole number: len(id2label), or 2
    id2label: Any = None  # once built a tuple of names
    unused: Mapping[str, object] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        self._resolve_labels()
        self._check()
        object.__setattr__(self, "pruned_heads", self._sorted_pruned_heads())
        for name, checked in (("layer_config", checked_layer_config), ("length_config", checked_length_config)):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, checked(given, self.num_hidden_layers))

    # -- building -------------------------------------------------------------------------------------

    @classmethod
    def tiny(cls, **changes) -> "BertConfig":
        """BERT-tiny: 2 layers, width 128 (Turc et al., 2019)."""
        return cls._of_size(2, 128).replace(**changes)

    @classmethod
    def mini(cls, **changes) -> "BertConfig":
        """BERT-mini: 4 layers, width 256 (Turc et al., 2019)."""
        return cls._of_size(4, 256).replace(**changes)

    @classmethod
    def small(cls, **changes) -> "BertConfig":
        """BERT-small: 4 layers, width 512 (Turc et al., 2019)."""
        return cls._of_size(4, 512).replace(**changes)

    @classmethod
    def medium(cls, **changes) -> "BertConfig":
        """BERT-medium: 8 layers, width 512 (Turc et al., 2019)."""
        return cls._of_size(8, 512).replace(**changes)

    @classmethod
    def base(cls, **changes) -> "BertConfig":
        """BERT-base: 12 layers, width 768 (Devlin et al., 2018)."""
        return cls._of_size(12, 768).replace(**changes)

    @classmethod
    def large(cls, **changes) -> "BertConfig":
        """BERT-large: 24 layers, width 1024 (Devlin et al., 2018)."""
        return cls._of_size(24, 1024).replace(**changes)

    @classmethod
    def _of_size(cls, layers: int, width: int) -> "BertConfig":
        # All published sizes have heads of 64 and a feed-forward of four times the width.
        return cls(
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
        )

    def replace(self, **changes) -> "BertConfig":
        """A copy with `changes`; changing one of `num_labels` and `id2label` resets the other."""
        if "id2label" in changes and "num_labels" not in changes:
            changes["num_labels"] = None
        if "num_labels" in changes and "id2label" not in changes:
            changes["id2label"] = None
        return dataclasses.replace(self, **changes)

    # -- config.json -----------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read config.json of a folder, or the file itself; see `flaxbert.families.read_config`."""
        from flaxbert.families import family_of_config_class, read_config

        return cast(Self, read_config(path, family_of_config_class(cls)))

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Build a configuration from the keys of a config.json; see `families.config_from_dict`."""
        from flaxbert.families import config_from_dict, family_of_config_class

        return cast(Self, config_from_dict(values, family_of_config_class(cls)))

    def to_dict(self, *, architecture: str | None = None) -> dict[str, object]:
        """Return the content of a config.json that `transformers` reads; see `families.config_to_dict`."""
        from flaxbert.families import config_to_dict

        return config_to_dict(self, architecture=architecture)

    # -- derived --------------------------------------------------------------------------------------

    @property
    def position_offset(self) -> int:
        """The position of a sequence's first token."""
        return 0

    @property
    def max_sequence_length(self) -> int:
        """The largest number of tokens of a sequence, each of which has a position."""
        return self.max_position_embeddings - self.position_offset

    @property
    def padding_row(self) -> int | None:
        """Row of the word embeddings that stays zero; as in PyTorch, a `pad_token_id` below 0 counts from the end."""
        return None if self.pad_token_id is None else self.pad_token_id % self.vocab_size

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def kept_heads(self, layer: int) -> tuple[int, ...]:
        """Return the heads of a layer that are not pruned, by their numbers in the unpruned model."""
        pruned = dict(self.pruned_heads).get(layer, ())
        return tuple(head for head in range(self.num_attention_heads) if head not in pruned)

    @property
    def has_relative_positions(self) -> bool:
        """True where each layer has a table of distances, and the embeddings add no position."""
        return self.position_embedding_type != "absolute"

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings, which a family may project to `hidden_size`."""
        return self.hidden_size

    @property
    def has_sinusoidal_positions(self) -> bool:
        """True where a new model's table of positions holds sinusoids."""
        return False

    @property
    def head_dropout_prob(self) -> float:
        """Dropout before a classifier: `classifier_dropout`, or `hidden_dropout_prob` where that is None."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    # -- checks ---------------------------------------------------------------------------------------

    def _resolve_labels(self):
        names = self.id2label
        if names is None:
            count = 2 if self.num_labels is None else self.num_labels
            names = tuple(f"LABEL_{i}" for i in range(_whole("num_labels", count, 1, _LIMITS["num_labels"])))
        elif isinstance(names, Mapping):
            if set(names) != set(range(len(names))):
                raise ValueError(f"id2label has the ids {sorted(names, key=str)}; they must be 0 to {len(names) - 1}")
            names = tuple(names[i] for i in range(len(names)))
        elif isinstance(names, Sequence) and not isinstance(names, str):
            names = tuple(names)
        else:
            raise ValueError(f"id2label is {names!r}; it must be a mapping from id to name, or a sequence of names")
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"id2label is {names!r}; it must name at least one label, each by a string")
        if self.num_labels not in (None, len(names)):
            raise ValueError(f"num_labels is {self.num_labels!r} but id2label names {len(names)} labels; give one")
        object.__setattr__(self, "id2label", names)
        object.__setattr__(self, "num_labels", len(names))

    def _check(self):
        for name, value in self.fixed_fields.items():
            if getattr(self, name) != value:
                given = f"{name} is {getattr(self, name)!r}"
                raise ValueError(f"{given}; a {self.model_type} model has no such setting: leave it at {value!r}")
        for name in _SIZES:
            if name not in self.fixed_fields:
                _whole(name, getattr(self, name), 1, _LIMITS.get(name, _SIZE_LIMIT))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}"
            )
        if self.pad_token_id is not None:
            _whole("pad_token_id", self.pad_token_id, -self.vocab_size, self.vocab_size - 1)
        for name in (field.name for field in dataclasses.fields(self) if "dropout" in field.name):
            if name != "classifier_dropout" or self.classifier_dropout is not None:
                _real(name, getattr(self, name), "from 0 to 1", lambda p: 0 <= p <= 1)
        _real("layer_norm_eps", self.layer_norm_eps, "greater than 0", lambda x: x > 0)
        _real("initializer_range", self.initializer_range, "at least 0", lambda x: x >= 0)
        for name in ("is_decoder", "add_cross_attention", "tie_word_embeddings"):
            _one_of(name, getattr(self, name), (False, True))
        _one_of("hidden_act", self.hidden_act, (*ACTIVATIONS, *LEARNED_ACTIVATIONS))
        _one_of("problem_type", self.problem_type, (None, *PROBLEM_TYPES))
        _one_of("always_keep_cls_token", self.always_keep_cls_token, (None, False, True))
        _one_of("position_embedding_type", self.position_embedding_type, POSITION_TYPES)
        _whole("chunk_size_feed_forward", self.chunk_size_feed_forward, 0, _SIZE_LIMIT)
        if self.add_cross_attention and not self.is_decoder:
            raise ValueError("add_cross_attention is true and is_decoder false; cross-attention needs is_decoder=True")

    def _sorted_pruned_heads(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        given = self.pruned_heads
        pairs = given.items() if isinstance(given, Mapping) else given
        pruned: dict[int, tuple[int, ...]] = {}
        try:
            for layer, heads in pairs or ():
                number = int(layer) if isinstance(layer, str) else operator.index(layer)
                pruned[number] = tuple(sorted({operator.index(head) for head in heads}))
        except (TypeError, ValueError):
            allowed = 'a mapping from layers to lists of heads, such as {"0": [1, 2]}'
            raise ValueError(f"pruned_heads is {given!r:.80}; it must be {allowed}") from None
        for layer, heads in pruned.items():
            _whole("a layer of pruned_heads", layer, 0, self.num_hidden_layers - 1)
            for head in heads:
                _whole(f"a head of layer {layer} in pruned_heads", head, 0, self.num_attention_heads - 1)
            if len(heads) == self.num_attention_heads:
                raise ValueError(f"pruned_heads has all heads of layer {layer}; a layer keeps at least one")
        return tuple(sorted((layer, heads) for layer, heads in pruned.items() if heads))


def checked_layer_config(value: object, layers: int) -> tuple[int, ...]:
    """Return the numbers of the layers that run; `layers` is the number that the model has.

    Raises:
        ValueError: not a list of whole numbers, or not layers of the model in ascending order.
    """
    numbers = _whole_numbers("layer_config", value)
    if not numbers or list(numbers) != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < layers:
        raise ValueError(
            f"layer_config is {list(numbers)}; it must be numbers of layers from 0 to {layers - 1}, in ascending order"
        )
    return numbers


def checked_length_config(value: object, layers: int) -> tuple[int, ...]:
    """Return the number of tokens that each of all `layers` keeps.

    Raises:
        ValueError: not a list of whole numbers, not one for each layer, or a number below 1 or above the one before.
    """
    lengths = _whole_numbers("length_config", value)
    if len(lengths) != layers:
        raise ValueError(
            f"length_config has {len(lengths)} numbers; the model has {layers} layers: give one number for each, also "
            "for layers that layer_config leaves out"
        )
    if min(lengths) < 1 or any(after > before for before, after in itertools.pairwise(lengths)):
        raise ValueError(f"length_config is {list(lengths)}; each number must be at least 1 and at most the one before")
    return lengths


def _whole_numbers(name: str, value: object) -> tuple[int, ...]:
    if (
        not isinstance(value, Sequence | np.ndarray)
        or isinstance(value, str | bytes)
        or not all(isinstance(number, int | np.integer) and not isinstance(number, bool) for number in value)
    ):
        raise ValueError(f"{name} is {value!r:.80}; it must be a list of whole numbers, such as [64, 48, 32]")
    return tuple(map(int, value))


_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


def _whole(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return int(value)


def _real(name: str, value: object, allowed: str, holds: Callable[[float], bool]) -> None:
    # `holds` is false for NaN too, whatever it compares.
    if (
        not isinstance(value, float | int | np.number)
        or isinstance(value, bool)
        or not value < _LARGEST_REAL  # also a whole number that no float holds
        or not holds(float(value))
    ):
        raise ValueError(f"{name} is {value!r}; it must be a number {allowed}")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
