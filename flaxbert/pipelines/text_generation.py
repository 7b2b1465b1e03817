"""Pipelines that write texts: one continues them, the other one writes another text for each."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from flaxbert import generation
from flaxbert.conversion.model_checkpoint import ModelCheckpoint
from flaxbert.encoder_decoder import EncoderDecoderModel
from flaxbert.families import HeadKind
from flaxbert.generation import GenerationSettings
from flaxbert.generation.settings import DEFAULT_NEW_TOKENS
from flaxbert.layers import Params
from flaxbert.lm_heads import BertLMHeadModel
from flaxbert.models import PreTrainedModel
from flaxbert.pipelines.batching import InputSequence, ModelBatch
from flaxbert.pipelines.pipeline import Pipeline, require_text
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.checkpoint import open_checkpoint


@dataclasses.dataclass(frozen=True)
class Continuation:
    """New text after a prompt, its number of tokens (the end token included), and its score (`GenerationOutput`)."""

    text: str
    tokens: int
    score: float


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """The continuations of a prompt: `num_return_sequences`, those of a beam search best first."""

    continuations: tuple[Continuation, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerationPipeline(Pipeline[str, GeneratedText]):
    """Continuations of texts by a decoder. A prompt is `[CLS] text`, without the separator that would end it.

    Attributes:
        settings: those of the search. Without an end token, [SEP] ends a text.
        seed: of the samples, 0 where None; a sample depends on the seed, the text and its number alone.
    """

    settings: GenerationSettings = GenerationSettings()
    seed: int | None = None

    heads: ClassVar = (HeadKind.CAUSAL_LM,)

    def __post_init__(self):
        super().__post_init__()
        self._check_decoder()
        if self.seed is not None and not self.settings.do_sample:
            raise ValueError(f"seed is {self.seed} without sampling; give do_sample=True, or leave it out")

    def _check_decoder(self) -> None:
        """Raise ValueError if the model or the settings cannot continue a text."""
        if not self.model.config.is_decoder:
            raise ValueError(
                "is_decoder of the model is false: its attention is not causal, and cannot continue a text. Write a "
                f"decoder and train it: flaxbert convert FOLDER NEW --head {type(self.model).__name__}"
            )
        if self.model.config.add_cross_attention:
            raise ValueError(
                "add_cross_attention of the model is true: it needs the states of an encoder, which no text gives; in "
                "Python, flaxbert.generate takes them as encoder_hidden_states"
            )
        if self.settings.max_length is not None:
            raise ValueError(
                f"max_length of the settings is {self.settings.max_length}, which would count padding; give "
                "max_new_tokens instead"
            )
        self._ready_settings.resolve(self.model.config, prompt_length=2, longest_prompt=1)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: DTypeLike = jnp.float32,
        settings: GenerationSettings | Mapping[str, object] | None = None,
        **options: Any,
    ) -> Self:
        """Load a model folder with its tokenizer; see `Pipeline.from_pretrained`.

        Args:
            folder, dtype, options: as there.
            settings: all settings, or a mapping of those that replace the folder's (generation_config.json).
        """
        if not isinstance(settings, GenerationSettings):
            files = ModelCheckpoint.open(Path(folder).expanduser()).checkpoint.config_folder
            settings = GenerationSettings.from_pretrained(files, **(settings or {}))
        return super().from_pretrained(folder, dtype=dtype, settings=settings, **options)

    def stream_text(self, text: str) -> Iterator[str]:
        """Yield the continuation of one text in pieces, as they are generated; without beams."""
        (prompt,) = self._encode([self._check(text, "text")], ["text"])[0]
        arguments = self._arguments(prompt.extra["key"][None])
        tokens = generation.stream(*self._ready_model, np.asarray(prompt.ids)[None], **arguments)
        return self._pieces(prompt.ids, (int(row[0]) for row in tokens))

    def _pieces(self, prompt: Sequence[int] | np.ndarray, tokens: Iterable[int]) -> Iterator[str]:
        ids, shown = [], ""
        for token in tokens:
            ids.append(token)
            new = self._new_text(prompt, ids)
            if not new.endswith("\ufffd"):  # the first bytes of a character
                yield new[len(shown) :]
                shown = new

    @functools.cached_property
    def _ready_settings(self) -> GenerationSettings:
        ends = self.settings.ends or (self.tokenizer.token_id(self.tokenizer.special_tokens.sep),)
        new = self.settings.max_new_tokens or DEFAULT_NEW_TOKENS
        return dataclasses.replace(self.settings, max_new_tokens=new, eos_token_id=ends)

    @functools.cached_property
    def _ready_model(self) -> tuple[BertLMHeadModel | EncoderDecoderModel, Params]:
        assert isinstance(self.model, BertLMHeadModel | EncoderDecoderModel)
        return generation.prepare_for_generation(self.model, self.params)

    @property
    def _limit(self) -> str:
        new = self._ready_settings.max_new_tokens
        return f"before {new} new ones the model takes {self._longest}: shorten it, or lower max_new_tokens"

    @property
    def _longest(self) -> int:
        """The largest number of tokens of a prompt: the last new token needs no position."""
        room = self.model.config.max_sequence_length - (self._ready_settings.max_new_tokens or 0) + 1
        return room if self.max_length is None else min(room, self.max_length)

    def _check(self, item: object, name: str) -> str:
        return require_text(item, name)

    def _prompt(self, pieces: Sequence[int]) -> list[int]:
        """Return the tokens of a text with the special ones around them."""
        return [self.tokenizer.token_id(self.tokenizer.special_tokens.cls), *pieces]

    def _encode(self, items: Sequence[str], names: Sequence[str]) -> list[list[InputSequence]]:
        encoded = []
        for name, pieces in zip(names, self.tokenizer.piece_ids(items), strict=True):
            ids = self._prompt(pieces)
            if len(ids) > self._longest:
                raise ValueError(f"{name} has {len(ids)} tokens; {self._limit}")
            key = jax.random.fold_in(jax.random.key(self.seed or 0), zlib.crc32(name.encode()))
            extra = {"key": np.asarray(jax.random.key_data(key))}
            encoded.append([InputSequence(ids, np.zeros(len(ids), np.int32), extra)])
        return encoded

    @functools.cached_property
    def _compiled_forward(self) -> Callable[[ModelBatch], PyTree]:
        return functools.partial(self._forward, self.params)  # compiled inside, for each length of prompts

    def _forward(self, params: Params, batch: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        # Rows that only fill the batch repeat the first one, so that they end with it.
        mask = np.asarray(batch["attention_mask"])
        rows = np.where(mask.any(axis=1), np.arange(mask.shape[0]), 0)
        ids, arguments = np.asarray(batch["input_ids"])[rows], self._arguments(np.asarray(batch["key"])[rows])
        out = generation.generate(*self._ready_model, ids, **arguments | {"attention_mask": mask[rows]})
        arrays = {"tokens": out.sequences[:, self._prompt_columns(ids) :], "lengths": out.lengths, "scores": out.scores}
        shape = (len(ids), self.settings.num_return_sequences)
        return {name: np.asarray(array).reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}

    def _prompt_columns(self, ids: np.ndarray) -> int:
        """Return the number of columns of generated sequences that are no new tokens."""
        return ids.shape[1]

    def _arguments(self, key_data: np.ndarray) -> generation.GenerationArguments:
        key = jax.random.wrap_key_data(jnp.asarray(key_data)) if self.settings.do_sample else None
        return {"settings": self._ready_settings, "key": key}

    def _decode(
        self, item: str, sequences: Sequence[InputSequence], outputs: Iterable[Mapping[str, np.ndarray]]
    ) -> GeneratedText:
        (sequence,), (output,) = sequences, outputs
        return GeneratedText(
            tuple(
                Continuation(self._new_text(sequence.ids, tokens[:length]), int(length), float(score))
                for tokens, length, score in zip(output["tokens"], output["lengths"], output["scores"], strict=True)
            )
        )

    def _new_text(self, prompt: Sequence[int] | np.ndarray, new: Sequence[int] | np.ndarray) -> str:
        """Return the text of the new tokens, without special ones, as it follows the prompt: "##ing" joins its word."""
        hidden = {*self.tokenizer.special_ids, *self._ready_settings.ends}
        shown = [int(id) for id in new if int(id) not in hidden]
        start = [int(id) for id in prompt]
        return self.tokenizer.decode([*start, *shown])[len(self.tokenizer.decode(start)) :]


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceToSequencePipeline(TextGenerationPipeline):
    """Texts that an encoder-decoder writes for others. The encoder reads `[CLS] text [SEP]`.

    The text of a `Continuation` is the whole text that is written; settings and seed are as in the base class.
    """

    model: EncoderDecoderModel

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: DTypeLike = jnp.float32,
        settings: GenerationSettings | Mapping[str, object] | None = None,
        **options: Any,
    ) -> Self:
        """Load the folder of an encoder-decoder with its tokenizer; arguments as of `TextGenerationPipeline`."""
        folder = Path(folder).expanduser()
        files = open_checkpoint(folder).config_folder
        if not isinstance(settings, GenerationSettings):
            settings = GenerationSettings.from_pretrained(files, **(settings or {}))
        tokenizer = WordPieceTokenizer.load(files)
        model, params = EncoderDecoderModel.from_pretrained(folder, dtype=dtype)
        given = {name: value for name, value in options.items() if value is not None}
        return cls(model, params, tokenizer, settings=settings, **given)

    @property
    def _head_model(self) -> PreTrainedModel:
        return self.model.decoder

    @property
    def _text_model(self) -> PreTrainedModel:
        return self.model.encoder

    def _check_decoder(self) -> None:
        self._ready_settings.resolve(self.model.decoder.config, prompt_length=1, longest_prompt=1)

    @functools.cached_property
    def _ready_settings(self) -> GenerationSettings:
        ends = self.settings.ends or (self.tokenizer.token_id(self.tokenizer.special_tokens.sep),)
        return dataclasses.replace(self.settings, eos_token_id=ends)

    @property
    def _longest(self) -> int:
        return self.max_length or self.model.encoder.config.max_sequence_length

    @property
    def _limit(self) -> str:
        return f"the model takes {self._longest}: shorten it"

    def _prompt(self, pieces: Sequence[int]) -> list[int]:
        return [*super()._prompt(pieces), self.tokenizer.token_id(self.tokenizer.special_tokens.sep)]

    def _prompt_columns(self, ids: np.ndarray) -> int:
        return 1  # the decoder's start token

    def _new_text(self, prompt: Sequence[int] | np.ndarray, new: Sequence[int] | np.ndarray) -> str:
        return super()._new_text([], new)
