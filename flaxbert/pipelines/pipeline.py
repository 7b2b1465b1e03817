"""Base class of the pipelines: loading, checks, and the path of a text through tokenizer, batches and model."""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from flaxbert.config import ADAPTIVE_FIELDS, AdaptiveArguments, BertConfig
from flaxbert.conversion.model_checkpoint import ModelCheckpoint
from flaxbert.families import Architecture, Family, HeadKind, architecture_name, architecture_of, family_of
from flaxbert.layers import Params
from flaxbert.models import BertModel, PreTrainedModel
from flaxbert.pipelines.batching import InputSequence, ModelBatch, chunked, length_buckets, run_in_batches
from flaxbert.tokenizer import WordPieceTokenizer

Item = TypeVar("Item")
Result = TypeVar("Result")

_MIN_MAX_LENGTH = 5  # [CLS] a [SEP] b [SEP]
_MAX_READ_AHEAD_LENGTH = 10**6  # characters of the inputs that are read before their results are computed
# The task of `flaxbert predict` for each kind of head.
_PREDICT_TASKS = {
    HeadKind.NONE: "embed",
    HeadKind.PRETRAINING: "fill-mask and next-sentence",
    HeadKind.MASKED_LM: "fill-mask",
    HeadKind.CAUSAL_LM: "generate",
    HeadKind.NEXT_SENTENCE: "next-sentence",
    HeadKind.SEQUENCE_CLASSIFICATION: "classify",
    HeadKind.MULTIPLE_CHOICE: "choose",
    HeadKind.TOKEN_CLASSIFICATION: "tag",
    HeadKind.QUESTION_ANSWERING: "answer",
    HeadKind.ANSWER_POINTER: "answer",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline(abc.ABC, Generic[Item, Result]):
    """Model with one of the class's `heads` and its tokenizer; subclasses encode the inputs and decode the outputs.

    Attributes:
        batch_size: sequences per batch; smaller batches are padded, so choose 1 to process one text at a time.
        max_length: maximum number of tokens of a sequence; None takes the tokenizer's model_max_length, at most the
            model's number of positions. Longer inputs
            are truncated, or split into windows, as the subclass says.
        read_ahead: number of inputs that are read before their results are computed, so that inputs of similar length
            share a batch.
        layer_config, length_config, always_keep_cls_token: layers that run and tokens that they keep, as in
            `BertModel.__call__`; None takes the folder's.

    Raises:
        ValueError: the model has another head, the vocabulary is larger than the model's, or a number is out
            of range.
    """

    model: PreTrainedModel
    params: Params
    tokenizer: WordPieceTokenizer
    batch_size: int = 32
    max_length: int | None = None
    read_ahead: int = 512
    layer_config: Sequence[int] | None = None
    length_config: Sequence[int] | None = None
    always_keep_cls_token: bool | None = None

    heads: ClassVar[tuple[HeadKind, ...]]

    def __post_init__(self):
        name = architecture_of(self._head_model).name
        self._require_head(family_of(self._head_model), name, name)
        config = self._text_model.config
        if adaptive := {name: value for name, value in self._adaptive_arguments.items() if value is not None}:
            config.replace(**adaptive)  # which checks them
            if self.model.config.is_decoder:
                raise ValueError(f"{' and '.join(adaptive)} is given to a decoder; leave it out, it is for encoders")
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("read_ahead", self.read_ahead, 1)
        if self.max_length is not None and not _MIN_MAX_LENGTH <= self.max_length <= config.max_sequence_length:
            raise ValueError(
                f"max_length is {self.max_length}; allowed: {_MIN_MAX_LENGTH} to {config.max_sequence_length}, the "
                "model's number of positions"
            )
        if self.tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens and the model {config.vocab_size}; use the "
                "tokenizer that the model was trained with"
            )

    @property
    def _adaptive_arguments(self) -> AdaptiveArguments:
        return AdaptiveArguments(**{name: getattr(self, name) for name in ADAPTIVE_FIELDS})

    @property
    def _head_model(self) -> PreTrainedModel:
        """The model with the head; of two models, the decoder."""
        return self.model

    @property
    def _text_model(self) -> PreTrainedModel:
        """The model that reads the texts; of two models, the encoder."""
        return self.model

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: DTypeLike = jnp.float32, **options: Any) -> Self:
        """Load a model folder with its tokenizer.

        Args:
            folder: a checkpoint that `flaxbert.from_pretrained` reads, with the files of its tokenizer beside it.
            dtype: compute dtype; the results are float32.
            **options: attributes of the class, for example `batch_size` and `max_length`; those that are not given or
                None are taken from the folder if it specifies them.

        Raises:
            FileNotFoundError: the folder, its weights or its tokenizer do not exist.
            ValueError: the model has another head, or a file cannot be read.
        """
        if "window" in options:
            raise TypeError("the option window is now named read_ahead")
        folder = Path(folder).expanduser()
        found = ModelCheckpoint.open(folder)
        # Google's config names no class: take the one of the tensors, or their encoder where that is enough.
        is_named = bool(found.config.unused.get("architectures"))
        encoder_alone = not is_named and HeadKind.NONE in cls.heads
        name = architecture_name(found.config.unused) if is_named else found.class_name
        name = found.family.base_model.name if encoder_alone else name
        architecture = cls._require_head(found.family, name, str(folder))  # before the weights are read
        tokenizer = WordPieceTokenizer.load(found.checkpoint.config_folder)
        built = found.model(architecture.name)
        pooler = {"add_pooling_layer": built.add_pooling_layer} if isinstance(built, BertModel) else {}
        model, params = architecture.model_class.from_pretrained(
            folder, dtype=dtype, config=built.config, strict=not encoder_alone, **pooler
        )
        given = {name: value for name, value in options.items() if value is not None}
        saved = cls._saved_options(found.checkpoint.config_folder, built.config, given)
        return cls(model, params, tokenizer, **{**saved, **given})

    @classmethod
    def _saved_options(cls, folder: Path, config: BertConfig, options: Mapping[str, object]) -> Mapping[str, Any]:
        """Return attributes that the folder specifies, as defaults of those that are given (`options`)."""
        return {}

    @classmethod
    def _require_head(cls, family: Family, name: str | None, source: str) -> Architecture:
        """Return the class of this name, which `source` has; raise a ValueError if it has no head of this pipeline."""
        architecture = family.architecture_named(name)
        if architecture is not None and architecture.head in cls.heads:
            return architecture
        allowed = family.classes_for(cls.heads)
        wanted = " or ".join(allowed) or f"model for {cls.heads[0].value}; {family.model_type!r} has none here"
        if name is None:
            remedy = "Choose a model of another family"
            if allowed:
                remedy = f"Write a folder of that class: flaxbert convert {source} NEW --head {allowed[0]}"
            raise ValueError(f"{source}: names no architecture, or several; {cls.__name__} needs a {wanted}. {remedy}")
        task = None if architecture is None else _PREDICT_TASKS.get(architecture.head)
        use = "which no pipeline here takes" if task is None else f"good for {task}"
        decoder = HeadKind.CAUSAL_LM in cls.heads and allowed
        remedy = f". Write one and train it: flaxbert convert {source} NEW --head {allowed[0]}" if decoder else ""
        raise ValueError(f"{source}: holds a {name}, {use}; {cls.__name__} needs a {wanted}{remedy}")

    def __call__(self, items: Iterable[Item]) -> list[Result]:
        """Return the result of each input.

        Raises:
            TypeError, ValueError: an input is invalid; the message names the first one.
        """
        return list(self.stream(items))

    def stream(self, items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in the order of the inputs, holding at most `read_ahead` inputs in memory.

        Raises:
            TypeError, ValueError: an input is invalid; raised when the inputs up to it have been read.
        """
        if isinstance(items, str | bytes):
            raise TypeError(f"the texts are one {type(items).__name__}, {items[:40]!r}; give a list of them")
        return self._results(items)

    def _results(self, items: Iterable[Item]) -> Iterator[Result]:
        names = (f"texts[{index}]" for index in itertools.count())
        checked = ((name, self._check(item, name)) for name, item in zip(names, items, strict=False))
        for chunk in self._chunks(checked):
            encoded = self._encode([item for _, item in chunk], [name for name, _ in chunk])
            outputs = self._outputs(itertools.chain.from_iterable(encoded))
            for (_, item), sequences in zip(chunk, encoded, strict=True):
                yield self._decode(item, sequences, itertools.islice(outputs, len(sequences)))

    def _chunks(self, named_items: Iterable[tuple[str, Item]]) -> Iterator[list[tuple[str, Item]]]:
        """Yield lists of inputs with their names; a list ends with the input that takes it over a million characters.

        So the memory is bounded by the longest input.
        """
        chunk, length = [], 0
        for name, item in named_items:
            chunk.append((name, item))
            length += _length(item)
            if len(chunk) == self.read_ahead or length > _MAX_READ_AHEAD_LENGTH:
                yield chunk
                chunk, length = [], 0
        if chunk:
            yield chunk

    def _outputs(self, sequences: Iterable[InputSequence]) -> Iterator[PyTree]:
        """Yield the output of each sequence; a long text has more sequences than outputs fit into memory."""
        for block in chunked(sequences, max(self.read_ahead, self.batch_size)):
            yield from run_in_batches(
                block,
                self._compiled_forward,
                batch_size=self.batch_size,
                lengths=length_buckets(self._longest),
                pad_id=self.tokenizer.token_id(self.tokenizer.special_tokens.pad),
            )

    @abc.abstractmethod
    def _check(self, item: object, name: str) -> Item:
        """Return the checked input; `name` identifies it in errors."""

    @abc.abstractmethod
    def _encode(self, items: Sequence[Item], names: Sequence[str]) -> list[list[InputSequence]]:
        """Return one or several sequences for each input."""

    @abc.abstractmethod
    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> PyTree:
        """Return a tree of arrays [B, ...] for a batch; compiled once per length."""

    @abc.abstractmethod
    def _decode(self, item: Item, sequences: Sequence[InputSequence], outputs: Iterable[PyTree]) -> Result:
        """Return the result of an input from the outputs of its sequences, all of which are read."""

    def _encode_pairs(self, pairs: Iterable[tuple[str, str | None]]) -> list[InputSequence]:
        """Return `[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]`, truncated to the maximum length."""
        texts, seconds = zip(*pairs, strict=True)
        if not self.takes_pairs and any(second is not None for second in seconds):
            raise ValueError("the model has one token type; it takes single texts, no pairs")
        encodings = self.tokenizer.encode(texts, seconds, max_length=self._longest)
        return [InputSequence(encoding.ids, encoding.type_ids) for encoding in encodings]

    def _model_outputs(self, params: Params, batch: Mapping[str, jax.Array], **arguments: Any) -> Any:
        """Return the model's output dataclass for a batch; `arguments` are further arguments of the model."""
        inputs = {name: batch[name] for name in self.model.input_names}
        return self.model.apply({"params": params}, **inputs, **self._adaptive_arguments, **arguments)

    @property
    def takes_pairs(self) -> bool:
        """False for a model with one token type, whose tokenizer gives the second text of a pair another one."""
        return self.model.config.type_vocab_size > 1 or "token_type_ids" not in self.model.input_names

    @property
    def _longest(self) -> int:
        if self.max_length is not None:
            return self.max_length
        positions = self._text_model.config.max_sequence_length
        return max(_MIN_MAX_LENGTH, min(positions, self.tokenizer.max_length or positions))

    @functools.cached_property
    def _compiled_forward(self) -> Callable[[ModelBatch], PyTree]:
        return functools.partial(jax.jit(self._forward), self.params)


def _length(item: object) -> int:
    """Return the number of characters of a text, or of the texts in a pair or list."""
    if isinstance(item, str):
        return len(item)
    return sum(map(_length, item)) if isinstance(item, list | tuple) else 0


def require_at_least(name: str, value: object, low: int) -> None:
    """Raise ValueError unless the setting `name` is an integer of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {low}")


def require_text(value: object, name: str) -> str:
    """Return a text unchanged; `name` identifies it in errors.

    Raises:
        TypeError: not a string.
        ValueError: only white space, or a lone surrogate, which UTF-8 cannot encode.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.60}; expected a text")
    if not value.strip():
        raise ValueError(f"{name} is empty; every text needs a word")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} holds a lone surrogate, which is no character: {value!r:.60}")
    return value


def require_pair(value: object, name: str, expected: str) -> Sequence[object]:
    """Return a list or tuple of two unchanged; raise TypeError, with `expected` in the message, for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise TypeError(f"{name} is {value!r:.60}; expected {expected}")
    return value


def require_text_pair(value: object, name: str, expected: str) -> tuple[str, str]:
    """Return the two texts of a pair, checked by `require_pair` and `require_text`."""
    first, second = require_pair(value, name, expected)
    return require_text(first, f"{name}[0]"), require_text(second, f"{name}[1]")
