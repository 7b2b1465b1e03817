"""Pipeline that embeds texts as vectors, with the settings of sentence-transformers folders."""

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flaxbert.families import HeadKind, read_config
from flaxbert.files import JsonObject, path_inside, read_json
from flaxbert.layers import Params
from flaxbert.pipelines.batching import InputSequence
from flaxbert.pipelines.pipeline import Pipeline, require_text
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.sentence_transformers import transformer_folder


class Pooling(enum.Enum):
    """Function from the vectors of all tokens to one vector, by the names of sentence-transformers."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """Settings of a sentence-transformers folder; the defaults are those of sentence-transformers."""

    pooling: Pooling = Pooling.MEAN
    normalize: bool = False
    max_length: int | None = None
    prompt: str = ""
    truncate_dim: int | None = None
    """Number of leading components of the vectors to keep."""
    do_lower_case: bool = False
    """Lower-case texts, whatever the tokenizer does."""


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceEmbeddingPipeline(Pipeline[str, np.ndarray]):
    """Vectors of texts, equal to those of sentence-transformers' `encode`.

    `from_pretrained` takes attributes that are not given from the folder's modules.json and the files that it names.

    Attributes:
        pooling: function from token vectors to a sentence vector: mean, the vector of [CLS], or maximum of each column.
        normalize: scale vectors to length 1, so that their dot product is the cosine.
        prompt: prefix of every text.
        truncate_dim: number of leading components of the vectors to keep; None keeps all. Vectors are scaled before.
    """

    pooling: Pooling = Pooling.MEAN
    normalize: bool = False
    prompt: str = ""
    truncate_dim: int | None = None

    heads: ClassVar = (HeadKind.NONE,)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: DTypeLike = jnp.float32, **options: object) -> Self:
        """Load a model folder, with the settings of sentence-transformers if it has some.

        The arguments and errors are those of `Pipeline.from_pretrained`; options that are None count as not given.
        """
        checkpoint = open_checkpoint(Path(folder).expanduser())
        settings = dataclasses.asdict(read_sentence_settings(checkpoint.model_folder))
        if settings["max_length"] is not None:
            positions = read_config(checkpoint.config_folder).max_sequence_length
            settings["max_length"] = min(settings["max_length"], positions)
        do_lower_case = settings.pop("do_lower_case")
        given = {name: value for name, value in options.items() if value is not None}
        pipeline = super().from_pretrained(folder, dtype=dtype, **{**settings, **given})
        if do_lower_case and not pipeline.tokenizer.lowercase:
            return dataclasses.replace(pipeline, tokenizer=pipeline.tokenizer.with_lowercase())
        return pipeline

    def __call__(self, items: Iterable[str]) -> np.ndarray:  # type: ignore[override]  # one array instead of a list
        """Return the vectors [N, D] of N texts, float32; errors as of the base class."""
        vectors = list(self.stream(items))
        return (
            np.stack(vectors)
            if vectors
            else np.zeros((0, self.model.config.hidden_size), np.float32)[:, : self.truncate_dim]
        )

    def _check(self, item: object, name: str) -> str:
        return self.prompt + require_text(item, name)

    def _encode(self, items: Sequence[str], names: Sequence[str]) -> list[list[InputSequence]]:
        return [[sequence] for sequence in self._encode_pairs((text, None) for text in items)]

    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        states = self._model_outputs(params, batch).last_hidden_state.astype(jnp.float32)
        vectors = pool_tokens(states, batch["attention_mask"], self.pooling)
        if self.normalize:
            vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors[:, : self.truncate_dim]

    def _decode(self, item: str, sequences: Sequence[InputSequence], outputs: Iterable[np.ndarray]) -> np.ndarray:
        (output,) = outputs
        return output


def pool_tokens(states: jax.Array, mask: jax.Array, pooling: Pooling) -> jax.Array:
    """Return one vector per text [B, D] from token vectors [B, T, D]; tokens with mask [B, T] == 0 are ignored."""
    if pooling is Pooling.CLS:
        return states[:, 0]
    valid = mask[:, :, None] != 0
    if pooling is Pooling.MAX:
        return jnp.max(jnp.where(valid, states, jnp.finfo(states.dtype).min), axis=1)
    return jnp.sum(jnp.where(valid, states, 0), axis=1) / jnp.maximum(jnp.sum(valid, axis=1), 1)


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Read modules.json and the files that it names; return the defaults if the folder has no modules.json.

    Raises:
        ValueError: a module that is not a transformer, pooling or normalisation (its weights would be ignored), an
            unknown pooling, or an invalid file.
    """
    if not (folder / "modules.json").is_file():
        return SentenceSettings()
    file, prompt = path_inside(folder, "modules.json"), _read_prompt(folder)
    settings = SentenceSettings(
        max_length=_read_max_length(transformer_folder(folder)),
        prompt=prompt,
        truncate_dim=_read_truncate_dim(folder),
        do_lower_case=_read_do_lower_case(transformer_folder(folder)),
    )
    for kind, path in _read_modules(file):
        if kind == "Pooling":
            pooling = _read_pooling(path_inside(folder, path) / "config.json", prompt)
            settings = dataclasses.replace(settings, pooling=pooling)
        elif kind == "Normalize":
            settings = dataclasses.replace(settings, normalize=True)
        elif kind != "Transformer":
            raise ValueError(
                f"{file}: has a module {kind!r}, which is not supported; known: Transformer, Pooling, Normalize"
            )
    return settings


def _read_modules(file: Path) -> list[tuple[str, str]]:
    """Return (last part of the class name, folder) of each module."""
    entries = read_json(file)
    modules = []
    for entry in entries if isinstance(entries, list) else []:
        kind, path = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if isinstance(kind, str) and isinstance(path, str):
            modules.append((kind.rpartition(".")[2], path))
    if not modules or len(modules) < len(entries):
        raise ValueError(f"{file}: expected a list of modules, each with its type and path")
    return modules


# Older folders have a switch for each kind of pooling, newer ones its name.
_POOLING_SWITCHES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _read_pooling(file: Path, prompt: str) -> Pooling:
    values = _read_object(file)
    switched_on = [name for switch, name in _POOLING_SWITCHES.items() if values.get(switch) is True]
    value = values.get("pooling_mode", switched_on)
    names = [value] if isinstance(value, str) else value
    known = [pooling.value for pooling in Pooling]
    if not isinstance(names, list) or len(names) != 1 or names[0] not in known:
        raise ValueError(f"{file}: the pooling is {names!r}; allowed, one of them: {', '.join(known)}")
    if prompt and values.get("include_prompt") is False:
        raise ValueError(f"{file}: leaves the prompt out of the mean (include_prompt), which is not supported")
    return Pooling(names[0])


def _read_max_length(folder: Path) -> int | None:
    """Return the length in the transformer's file, or in the tokenizer's, where newer folders keep it."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        file = path_inside(folder, name)
        value = _read_object(file).get(key) if file.is_file() else None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _read_truncate_dim(folder: Path) -> int | None:
    file = path_inside(folder, "config_sentence_transformers.json")
    value = _read_object(file).get("truncate_dim") if file.is_file() else None
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{file}: truncate_dim is {value!r:.40}; it must be a whole number, at least 1, or null")
    return value


def _read_do_lower_case(folder: Path) -> bool:
    file = path_inside(folder, "sentence_bert_config.json")
    value = _read_object(file).get("do_lower_case", False) if file.is_file() else False
    if not isinstance(value, bool):
        raise ValueError(f"{file}: do_lower_case is {value!r:.40}; it must be true or false")
    return value


def _read_prompt(folder: Path) -> str:
    file = path_inside(folder, "config_sentence_transformers.json")
    values = _read_object(file) if file.is_file() else {}
    name, prompts = values.get("default_prompt_name"), values.get("prompts")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ValueError(f"{file}: the default prompt {name!r:.60} is none of its prompts")
    return prompts[name]


def _read_object(file: Path) -> JsonObject:
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds a JSON {type(values).__name__}, expected an object")
    return values
