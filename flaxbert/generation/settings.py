"""`GenerationSettings`: the numbers and switches of text generation, checked when built."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import jax

from flaxbert.config import BertConfig
from flaxbert.generation.settings_file import LENGTHS, read_settings

DEFAULT_NEW_TOKENS = 20  # as in transformers


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """The settings of `flaxbert.generate`, with Hugging Face's names, meanings and defaults.

    A tree with static contents but for four leaves, `temperature`, `top_p`, `repetition_penalty` and `length_penalty`,
    where they are not 1: what is compiled for one value serves all others.

    Attributes:
        max_new_tokens, max_length: largest number of new tokens, or of tokens with the (padded) prompt; 20 new tokens
            where both are None.
        min_new_tokens, min_length: no end-of-sequence token before this number of new tokens, or of tokens with the
            prompt.
        do_sample: draw the tokens at random; otherwise take the most probable one, or search with beams.
        temperature: the scores are divided by it before the draw.
        top_k: draw among this many most probable tokens; 0 for all.
        top_p: draw among the fewest tokens that have this probability together; with top_k=0 each step sorts the
            vocabulary.
        num_beams: beams of each prompt; 1 searches with none.
        num_return_sequences: sequences returned for each prompt.
        length_penalty: a hypothesis of n new tokens scores its log probability / n ** length_penalty.
        early_stopping: True ends a prompt at `num_beams` hypotheses; False when the best running beam, at its present
            length, scores below all of them; "never" when no continuation can score above them.
        repetition_penalty: scores of tokens that occurred are divided by it if positive and multiplied if negative.
        no_repeat_ngram_size: no sequence of this many tokens occurs twice; 0 allows all.
        bad_words_ids: sequences of tokens that never occur among the new tokens.
        suppress_tokens: tokens that never occur among the new tokens.
        forced_bos_token_id: the second token, after a prompt of a single token.
        forced_eos_token_id: the last token, one or several to choose from, if no other one ended the sequence before.
        eos_token_id: tokens that end a sequence: one, several, or None.
        pad_token_id: token after the end of a sequence; None takes the model's, or the first of `eos_token_id`.

    Raises:
        ValueError: a value is impossible, or one contradicts another.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        for name in ("suppress_tokens", "forced_eos_token_id", "eos_token_id"):
            object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        words = () if self.bad_words_ids is None else self.bad_words_ids
        if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(w, Sequence) for w in words):
            raise ValueError(f"bad_words_ids is {words!r:.80}; it must be a list of lists of token ids")
        object.__setattr__(self, "bad_words_ids", tuple(_token_ids("bad_words_ids", word) for word in words))
        self._check_values()
        self._check_combinations()

    def changes(self, name: str) -> bool:
        """Return whether this one of the four leaves is not 1; where it is traced, it is not."""
        value = getattr(self, name)
        return isinstance(value, jax.Array) or value != 1.0

    def tree_flatten(self) -> tuple[list[float], tuple[tuple[str, ...], Self]]:
        """Return the leaves, and their names with the static settings."""
        names = tuple(name for name in _LEAVES if self.changes(name))
        return [getattr(self, name) for name in names], (names, self._with_leaves(dict.fromkeys(names, 1.0)))

    @classmethod
    def tree_unflatten(cls, static: tuple[tuple[str, ...], Self], leaves: Iterable[object]) -> Self:
        """Return the settings with these leaves, whatever they are."""
        names, settings = static
        return settings._with_leaves(dict(zip(names, leaves, strict=True)))

    def _with_leaves(self, values: Mapping[str, object]) -> Self:
        changed = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(changed, name, value)  # without the checks, which a traced number does not pass
        return changed

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a sequence."""
        return self.eos_token_id  # type: ignore[return-value]  # a tuple once built

    @property
    def new_tokens(self) -> int:
        """`max_new_tokens` of resolved settings."""
        assert self.max_new_tokens is not None, "resolve the settings first"
        return self.max_new_tokens

    @property
    def padding(self) -> int:
        """`pad_token_id` of resolved settings."""
        assert self.pad_token_id is not None, "resolve the settings first"
        return self.pad_token_id

    @classmethod
    def from_pretrained(cls, path: str | Path, **changes: Any) -> Self:
        """Read generation_config.json of a folder, or its config.json if there is none; `changes` replace values.

        Sampling values of the file count only with do_sample, and beam values only with beams, as in transformers.

        Raises:
            FileNotFoundError: the folder has neither file.
            ValueError: the file sets something that is not built, or a value is impossible.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**read_settings(Path(path).expanduser(), names, changes))

    def resolve(self, config: BertConfig, *, prompt_length: int, longest_prompt: int) -> Self:
        """Return these settings for prompts of `prompt_length` columns, of which `longest_prompt` are tokens.

        `max_new_tokens`, `min_new_tokens` and `pad_token_id` are set, `max_length` and `min_length` are None.

        Raises:
            ValueError: the lengths leave no new token or exceed the model's positions, or a token is not in the
                vocabulary.
        """
        positions = config.max_sequence_length
        room = positions - longest_prompt + 1  # the last new token needs no position: nothing is computed from it
        if self.max_new_tokens is not None:
            new = self.max_new_tokens
        elif self.max_length is not None:
            new = self.max_length - prompt_length
        else:
            new = min(DEFAULT_NEW_TOKENS, max(1, positions - prompt_length))
        if new < 1:
            raise ValueError(
                f"max_length is {self.max_length} and the prompt has {prompt_length} tokens; raise max_length, or give "
                "max_new_tokens"
            )
        if new > room:
            raise ValueError(
                f"{new} new tokens after a prompt of {longest_prompt} need {longest_prompt + new - 1} positions; the "
                f"model has {positions}: give "
                + (f"max_new_tokens of at most {room}, or a shorter prompt" if room > 0 else "a shorter prompt")
            )
        least = self.min_new_tokens or max(0, (self.min_length or 0) - prompt_length)
        if least > new:
            raise ValueError(f"at least {least} new tokens are asked for, and at most {new}; change one of the two")
        if self.forced_bos_token_id is not None and prompt_length != 1:
            raise ValueError(
                f"forced_bos_token_id is the token after a prompt of one token; the prompt has {prompt_length}. "
                "Give forced_bos_token_id=None, or append the token to the prompt"
            )
        self._check_vocabulary(config.vocab_size)
        pad = next((id for id in (self.pad_token_id, config.padding_row, *self.ends) if id is not None), 0)
        lengths = {"max_new_tokens": new, "min_new_tokens": least, "max_length": None, "min_length": None}
        return dataclasses.replace(self, **lengths, pad_token_id=pad)

    # -- checks ------------------------------------------------------------------------------------------------

    def _check_values(self):
        for name, low in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {low}")
        for name in _LEAVES:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < float("inf"):
                raise ValueError(f"{name} is {value!r}; it must be a number")
            object.__setattr__(self, name, float(value))
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0; do_sample=False is greedy search")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0")
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"do_sample is {self.do_sample!r}; it must be True or False")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping is {self.early_stopping!r}; allowed: True, False, 'never'")
        if not all(self.bad_words_ids):
            raise ValueError("bad_words_ids holds an empty sequence; each needs a token")

    def _check_combinations(self):
        for first, second in LENGTHS:
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ValueError(f"{first} and {second} are both given; give one of them")
        for name, neutral in (("temperature", 1.0), ("top_k", 50), ("top_p", 1.0)):
            if not self.do_sample and getattr(self, name) != neutral:
                raise ValueError(
                    f"{name} is {getattr(self, name)} without sampling; give do_sample=True, or leave it out"
                )
        for name, neutral in (("length_penalty", 1.0), ("early_stopping", False)):
            if self.num_beams == 1 and getattr(self, name) != neutral:
                raise ValueError(
                    f"{name} is {getattr(self, name)} without beams; give num_beams above 1, or leave it out"
                )
        if self.num_return_sequences > self.num_beams and not (self.do_sample and self.num_beams == 1):
            remedy = "raise num_beams, or give do_sample=True" if self.num_beams == 1 else "raise num_beams"
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences} with num_beams {self.num_beams}; {remedy}"
            )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = getattr(self, name)
            forced = () if forced is None else (forced,) if isinstance(forced, int) else forced
            if forced and set(forced) <= set(self.suppress_tokens):
                raise ValueError(f"{name} {list(forced)} is among suppress_tokens; remove it from one of them")

    def _check_vocabulary(self, size: int):
        ids = {name: getattr(self, name) for name in ("suppress_tokens", "forced_eos_token_id", "eos_token_id")}
        ids |= {name: (getattr(self, name) or 0,) for name in ("forced_bos_token_id", "pad_token_id")}
        ids["bad_words_ids"] = tuple(id for word in self.bad_words_ids for id in word)
        for name, values in ids.items():
            if wrong := [id for id in values if id >= size]:
                raise ValueError(f"{name} holds {wrong[0]}; allowed: 0 to {size - 1}, the model's vocabulary")


_WHOLE_NUMBERS = {
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "top_k": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "forced_bos_token_id": 0,
    "pad_token_id": 0,
}
"""The least allowed value of each whole number."""


_LEAVES = ("temperature", "top_p", "repetition_penalty", "length_penalty")
"""The numbers that change nothing where they are 1."""


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    given = () if value is None else (value,) if isinstance(value, int) else value
    ids = tuple(id for id in given if type(id) is int and id >= 0) if isinstance(given, Sequence) else ()
    if not isinstance(given, Sequence) or len(ids) < len(given):
        raise ValueError(f"{name} is {value!r:.80}; it must hold token ids, whole numbers of at least 0")
    return ids
