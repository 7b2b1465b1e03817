"""What every pipeline shares: loading, its checks, and the way of a text through tokenizer, batches and model."""

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

from flaxbert.base import PreTrainedModel
from flaxbert.families.config_file import architecture_name, read_config
from flaxbert.pipelines.batching import Batch, Row, in_batches, ladder, windows
from flaxbert.pretrained import from_pretrained
from flaxbert.tokenizer import PAD, WordPieceTokenizer

Item = TypeVar("Item")
Result = TypeVar("Result")

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_SHORTEST = 5  # [CLS] a [SEP] b [SEP]
# What a folder is good for, by the class that it names; the words of `flaxbert predict`.
TASKS = {
    "BertModel": "embed",
    "BertForPreTraining": "fill-mask and next-sentence",
    "BertForMaskedLM": "fill-mask",
    "BertForNextSentencePrediction": "next-sentence",
    "BertForSequenceClassification": "classify",
    "BertForMultipleChoice": "choose",
    "BertForTokenClassification": "tag",
    "BertForQuestionAnswering": "answer",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline(abc.ABC, Generic[Item, Result]):
    """A model with its tokenizer; subclasses know what a text's rows are and what the model's outputs mean.

    Attributes:
        model: of one of the class's `architectures`.
        params: its parameters.
        tokenizer: with the vocabulary that the model was trained with.
        batch_size: rows computed at a time; fewer are filled up, so choose 1 to answer one text at a time.
        max_length: longer inputs are cut to so many tokens, of a pair the longer text first, or read in windows of so
            many, as the class says; the model's number of positions where None.
        window: inputs that are read ahead, to put those of similar length together; `stream` gives nothing before the
            first so many are read.

    Raises:
        ValueError: a model of another architecture, a tokenizer of another vocabulary, an impossible number.
    """

    model: PreTrainedModel
    params: Mapping[str, Any]
    tokenizer: WordPieceTokenizer
    batch_size: int = 32
    max_length: int | None = None
    window: int = 512

    architectures: ClassVar[tuple[str, ...]]

    def __post_init__(self):
        name = type(self.model).__name__
        self._require_architecture(name, name)
        config = self.model.config
        at_least("batch_size", self.batch_size, 1)
        at_least("window", self.window, 1)
        if self.max_length is not None and not _SHORTEST <= self.max_length <= config.max_position_embeddings:
            raise ValueError(
                f"max_length is {self.max_length}; allowed: {_SHORTEST} to {config.max_position_embeddings}, the "
                "model's number of positions"
            )
        if self.tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens and the model {config.vocab_size}; they are not "
                "of one model"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: DTypeLike = jnp.float32, **options: Any) -> Self:
        """Loads a model folder with its tokenizer.

        Args:
            folder: what `flaxbert.from_pretrained` and `WordPieceTokenizer.load` read.
            dtype: of the computation; answers are float32.
            **options: attributes of the class, `batch_size` and `max_length` among them.

        Raises:
            FileNotFoundError: no such folder, or one without weights or tokenizer.
            ValueError: it holds a model of another architecture, or cannot be read.
        """
        named = architecture_name(read_config(folder).unused)
        cls._require_architecture(named, str(folder))  # before the weights are read
        tokenizer = WordPieceTokenizer.load(folder)
        model, params = from_pretrained(folder, dtype=dtype)
        return cls(model, params, tokenizer, **options)

    @classmethod
    def _require_architecture(cls, name: str | None, place: str) -> None:
        if name in cls.architectures:
            return
        wanted = " or ".join(cls.architectures)
        if name is None:
            raise ValueError(
                f"{place}: names no architecture; {cls.__name__} needs a {wanted}. Write a folder of that class: "
                f"flaxbert convert {place} NEW --head {cls.architectures[0]}"
            )
        good_for = f"good for {TASKS[name]}" if name in TASKS else "which no pipeline here takes"
        raise ValueError(f"{place}: holds a {name}, {good_for}; {cls.__name__} needs a {wanted}")

    # -- what subclasses say ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def _checked(self, item: Any, place: str) -> Item:
        """The input as it is used; raises an error that names its place where it is not one."""

    @abc.abstractmethod
    def _rows(self, items: Sequence[Item], places: Sequence[str]) -> list[list[Row]]:
        """The rows of each input, one or several."""

    @abc.abstractmethod
    def _forward(self, params: Any, batch: Any) -> Any:
        """What is computed for a batch: a tree of arrays [B, ...]."""

    @abc.abstractmethod
    def _result(self, item: Item, rows: Sequence[Row], outputs: Sequence[Any]) -> Result:
        """The answer, from what was computed for each of the input's rows."""

    # -- what they share --------------------------------------------------------------------------------------

    def stream(self, items: Iterable[Item]) -> Iterator[Result]:
        """The answers in the order of the inputs, as each window is ready; no more than a window is in memory.

        Raises:
            TypeError, ValueError: as the call, when the window of the wrong input is reached.
        """
        if isinstance(items, str | bytes):
            raise TypeError(f"the texts are one {type(items).__name__}, {items[:40]!r}; give a list of them")
        return self._answers(items)

    def _answers(self, items: Iterable[Any]) -> Iterator[Result]:
        start = 0
        for window in windows(items, self.window):
            places = [f"texts[{start + number}]" for number in range(len(window))]
            checked = [self._checked(item, place) for item, place in zip(window, places, strict=True)]
            rows = self._rows(checked, places)
            outputs = iter(in_batches([row for own in rows for row in own], self._computed, **self._shapes))
            for item, own in zip(checked, rows, strict=True):
                yield self._result(item, own, list(itertools.islice(outputs, len(own))))
            start += len(window)

    def _encoded(self, texts: Sequence[str], pairs: Sequence[str | None]) -> list[Row]:
        """`[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]`, cut to the longest length."""
        if self.model.config.type_vocab_size < 2 and any(pair is not None for pair in pairs):
            raise ValueError("the model has one token type; it takes single texts, no pairs")
        encodings = self.tokenizer.encode(texts, pairs, max_length=self._longest)
        return [Row(encoding.ids, encoding.type_ids) for encoding in encodings]

    def _outputs(self, params: Any, batch: Batch, **more: Any) -> Any:
        """What the model returns for a batch."""
        return self.model.apply({"params": params}, **{name: batch[name] for name in _INPUTS}, **more)

    @property
    def _longest(self) -> int:
        return self.max_length or self.model.config.max_position_embeddings

    @functools.cached_property
    def _shapes(self) -> dict[str, Any]:
        return {"size": self.batch_size, "lengths": ladder(self._longest), "pad_id": self.tokenizer.token_id(PAD)}

    @functools.cached_property
    def _computed(self) -> Callable[[Batch], Any]:
        compiled = jax.jit(self._forward)
        return lambda batch: compiled(self.params, batch)


def at_least(name: str, value: Any, low: int) -> None:
    """Raises ValueError where a setting is not a whole number from `low` up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {low}")


def text_of(value: Any, place: str) -> str:
    """The text itself.

    Raises:
        TypeError: no string.
        ValueError: nothing but blanks, or a lone surrogate, of which there is no UTF-8.
    """
    if not isinstance(value, str):
        raise TypeError(f"{place} is {value!r:.60}; expected a text")
    if not value.strip():
        raise ValueError(f"{place} is empty; every text needs a word")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{place} holds a lone surrogate, which is no character: {value!r:.60}")
    return value


def fields_of(value: Any, place: str, what: str) -> Sequence[Any]:
    """A list or tuple of two; raises TypeError where it is none, saying `what` is expected."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise TypeError(f"{place} is {value!r:.60}; expected {what}")
    return value
