"""The description of a model family as data: configuration, tensor names, inputs, task heads, special tokens.

The loader, the converter, the pipelines, the export and the trainer take from it all that differs between families.
"""

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping

from flaxbert.config import BertConfig
from flaxbert.functional import LEARNED_ACTIVATIONS
from flaxbert.models import PreTrainedModel

ParameterPath = tuple[str, ...]
"""The keys that lead to a parameter in the nested params dict."""


class HeadKind(enum.Enum):
    """The task that a model class solves, the same for every family."""

    NONE = "embeddings"
    PRETRAINING = "pretraining"
    MASKED_LM = "masked language modelling"
    CAUSAL_LM = "causal language modelling"
    NEXT_SENTENCE = "next-sentence prediction"
    SEQUENCE_CLASSIFICATION = "sequence classification"
    MULTIPLE_CHOICE = "multiple choice"
    TOKEN_CLASSIFICATION = "token classification"
    QUESTION_ANSWERING = "question answering"
    ANSWER_POINTER = "question answering by a pointer"
    REPLACED_TOKENS = "replaced-token detection"


@dataclasses.dataclass(frozen=True)
class TensorName:
    """One row of a name table: a tensor of Hugging Face's PyTorch model and the parameter that holds it.

    Attributes:
        name: the tensor's name; "{layer}" stands for the number of an encoder layer.
        path: the parameter's keys. The parameters of all layers are stacked on a leading axis.
        input_axes: for the kernel of a linear layer, the number of its leading axes that are inputs. PyTorch stores
            such a kernel transposed, [out, in]. None: the same layout in both.
        per_token: one row (in PyTorch's layout) for each entry of the vocabulary.
    """

    name: str
    path: ParameterPath
    input_axes: int | None = None
    per_token: bool = False

    def inside(self, prefix: str) -> "TensorName":
        """Return the row with `prefix` before the name and the path."""
        return dataclasses.replace(self, name=f"{prefix}.{self.name}", path=(prefix, *self.path))


def linear_names(name: str, path: str, *, input_axes: int = 1, per_token: bool = False) -> tuple[TensorName, ...]:
    """Return the rows of a linear layer: weight and kernel, bias and bias."""
    keys = tuple(path.split("/"))
    return (
        TensorName(f"{name}.weight", (*keys, "kernel"), input_axes, per_token),
        TensorName(f"{name}.bias", (*keys, "bias"), None, per_token),
    )


def layer_norm_names(name: str, path: str) -> tuple[TensorName, ...]:
    """Return the rows of a layer norm: weight and scale, bias and bias."""
    keys = tuple(path.split("/"))
    return TensorName(f"{name}.weight", (*keys, "scale")), TensorName(f"{name}.bias", (*keys, "bias"))


def activation_names(name: str, path: str) -> tuple[TensorName, ...]:
    """Return the rows of an activation with parameters, of whatever kind."""
    keys = (key for numbers in LEARNED_ACTIVATIONS.values() for key in numbers)
    return tuple(TensorName(f"{name}.{key}", (*path.split("/"), key)) for key in keys)


def embedding_name(name: str, path: str, *, per_token: bool = False) -> TensorName:
    """Return the row of an embedding table."""
    return TensorName(f"{name}.weight", (*path.split("/"), "embedding"), None, per_token)


@dataclasses.dataclass(frozen=True)
class TokenDecoder:
    """The tensors of the decoder of a language-model head, which are tied in most checkpoints.

    A tied decoder has no weight of its own (`weight` is an alias of the word embeddings), and its bias is stored as
    `bias`, with `untied_bias` as an alias. An untied decoder has `weight` and `untied_bias`; files of transformers 5
    then hold `bias` too, which it never reads, and files of transformers 4 hold `bias` alone. Both names may be equal.
    """

    embeddings: str
    weight: str
    bias: str
    untied_bias: str

    @property
    def aliases(self) -> dict[str, str]:
        """For each alias in a model with tied embeddings, the name that the tensor is stored under."""
        return {self.weight: self.embeddings} | ({} if self.untied_bias == self.bias else {self.untied_bias: self.bias})


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model class with the kind of its head and the tensor names that identify it.

    If config.json names no class, the first architecture is chosen whose `marks`, prefixes of tensor names, all occur,
    else the base model. An architecture without marks is never chosen.
    """

    model_class: type[PreTrainedModel]
    head: HeadKind
    marks: tuple[str, ...] = ()

    @property
    def is_in_transformers(self) -> bool:
        """False for a head that `transformers` lacks: it loads the encoder alone."""
        return self.head is not HeadKind.ANSWER_POINTER

    @property
    def name(self) -> str:
        """Name of the class in config.json, under "architectures"."""
        return self.model_class.__name__

    @property
    def is_base_model(self) -> bool:
        """True for the encoder alone: its tensor names carry no prefix, and its pooler is optional."""
        return self.head is HeadKind.NONE


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The tokens that a family's tokenizer gives a meaning to, by their roles."""

    pad: str
    unknown: str
    cls: str
    sep: str
    mask: str


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """All that the library needs to know about one kind of model.

    Attributes:
        config_class: the configuration, whose fields are the keys of config.json that change the mathematics.
        kept_config_keys: keys of config.json that change nothing here and are written back as they were read.
        prefix: the encoder's name within a task class: the first part of tensor names, and the first key in params.
        encoder, pooler, heads: name tables; those of the encoder and the pooler are without the prefix.
        buffers: tensors in files that hold no parameter, without the prefix; those of activations need no entry.
        label_weights: matrices with one row for each label; from the one that a file has, the number of labels is read
            where config.json names no class.
        training_only: first keys of parameters that a run's checkpoints hold beside those of the model.
        config_keys: keys of config.json by the fields of the configuration, where the two differ.
        takes_layers_of: the model types whose models `surgery.change_family` makes models of this family.
    """

    model_type: str
    config_class: type[BertConfig]
    kept_config_keys: frozenset[str]
    prefix: str
    encoder: tuple[TensorName, ...]
    pooler: tuple[TensorName, ...]
    heads: tuple[TensorName, ...]
    buffers: tuple[str, ...]
    decoder: TokenDecoder
    label_weights: tuple[str, ...]
    architectures: tuple[Architecture, ...]
    special_tokens: SpecialTokens
    training_only: tuple[str, ...] = ()
    config_keys: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    takes_layers_of: tuple[str, ...] = ()

    def prefixed(self, name: str) -> str:
        """Return the name of an encoder's tensor as task classes spell it."""
        return f"{self.prefix}.{name}"

    @property
    def pooler_names(self) -> frozenset[str]:
        """The tensor names of the pooler, with the prefix."""
        return frozenset(self.prefixed(row.name) for row in self.pooler)

    @property
    def buffer_names(self) -> frozenset[str]:
        """The tensor names that hold no parameter, with the prefix; "{layer}" stands for the number of a layer."""
        return frozenset(map(self.prefixed, self.buffers))

    def is_buffer(self, name: str) -> bool:
        """Return True for the name of a tensor that holds no parameter, with the prefix."""
        name = re.sub(r"\.[0-9]+\.", ".{layer}.", name, count=1)
        module, _, ending = name.rpartition(".")
        if ending in ("beta", "eps"):  # constants of an activation, beside its parameters
            return f"{module}.alpha_p" in {
                *(self.prefixed(row.name) for row in self.encoder),
                *(row.name for row in self.heads),
            }
        return name in self.buffer_names

    @property
    def base_model(self) -> Architecture:
        """The encoder without a task head."""
        return next(architecture for architecture in self.architectures if architecture.is_base_model)

    def architecture_named(self, name: str | None) -> Architecture | None:
        """Return the architecture with a class of this name; None where the family has none."""
        return next((known for known in self.architectures if known.name == name), None)

    def classes_for(self, heads: Iterable[HeadKind]) -> tuple[str, ...]:
        """Return the names of the model classes that have one of these heads, in the order of `heads`."""
        return tuple(known.name for head in heads for known in self.architectures if known.head is head)
