"""Changes of a model during a conversion: pruned heads, fewer layers, another vocabulary, another family."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from flaxbert import surgery
from flaxbert.config import BertConfig
from flaxbert.families import family_of
from flaxbert.families.family import ParameterPath
from flaxbert.layers import Params
from flaxbert.models import PreTrainedModel
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.load import initialise, place_on_devices
from flaxbert.weights.match import MatchedTensors, belongs_to_head
from flaxbert.weights.names import NameMapping, ParameterTensor, leaf_at, name_mappings
from flaxbert.weights.sentence_transformers import transformer_folder

_log = logging.getLogger("flaxbert")


@dataclasses.dataclass(frozen=True)
class ShapeChanges:
    """Changes of a checkpoint's model; numbers of layers and heads are the checkpoint's own.

    Attributes:
        prune_heads: the heads to remove from each layer.
        keep_layers: the layers to keep; None for all.
        vocab_size: the new size; None for the checkpoint's.
        pad_to_multiple_of: round the vocabulary's size up to a multiple of this.
    """

    prune_heads: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    keep_layers: Sequence[int] | None = None
    vocab_size: int | None = None
    pad_to_multiple_of: int | None = None

    @property
    def given(self) -> dict[str, object]:
        """The changes that are asked for, by name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value not in (None, {})}

    def apply(
        self, model: PreTrainedModel, matched: MatchedTensors, key: jax.Array | None
    ) -> tuple[PreTrainedModel, MatchedTensors]:
        """Return the changed model and its tensors, all of them in memory and of the checkpoint's widest dtype.

        `key` is for new parameters.

        Raises:
            ValueError: a change that the model does not allow.
        """
        if self.vocab_size is not None and self.vocab_size < 1:
            least = (model.config.pad_token_id or 0) + 1
            raise ValueError(f"vocab_size is {self.vocab_size}; it must be at least {least}, with the padding token")
        head_key, rows_key = jax.random.split(jax.random.key(0) if key is None else key)
        params = place_on_devices(matched, initialise(matched, model, head_key))
        config: BertConfig = model.config
        if self.prune_heads:
            pruned = dict(config.pruned_heads)
            again = {layer: set(heads) & set(pruned.get(layer, ())) for layer, heads in self.prune_heads.items()}
            for layer in sorted(layer for layer, heads in again.items() if heads):
                _log.warning("layer %d: heads pruned before, nothing to do: %s", layer, sorted(again[layer]))
            config, params = surgery.prune_heads(config, params, self.prune_heads)
        if self.keep_layers is not None:
            config, params = surgery.drop_layers(config, params, keep=self.keep_layers)
        if self.vocab_size is not None or self.pad_to_multiple_of is not None:
            config, params = surgery.resize_token_embeddings(
                config, params, self.vocab_size, pad_to_multiple_of=self.pad_to_multiple_of, key=rows_key
            )
        mappings = {mapping.name: mapping for mapping in name_mappings(family_of(model), params)}
        tensors = _as_tensors(params, mappings, matched)
        return model.clone(config=config), MatchedTensors(mappings, tensors, frozenset(), matched.left_out)


def change_family(
    model: PreTrainedModel, matched: MatchedTensors, target: type[PreTrainedModel], key: jax.Array | None
) -> tuple[PreTrainedModel, MatchedTensors]:
    """Return a model of a class of another family and its tensors, all of them in memory (`surgery.change_family`).

    A head of which the model lacks a parameter is missing as a whole; `key` is for parameters that it lacks already.

    Raises:
        ValueError: the family does not take the layers of this one.
    """
    params = place_on_devices(matched, initialise(matched, model, key))
    config, params = surgery.change_family(model.config, params, target.config_class)
    changed = target(config)
    mappings = {mapping.name: mapping for mapping in name_mappings(family_of(changed), changed.parameter_shapes())}
    known = {tuple(part.key for part in path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    known -= {matched.mappings[name].path for name in matched.missing}
    missing = {name for name, mapping in mappings.items() if mapping.path not in known}
    if missing:
        missing |= {name for name in mappings if belongs_to_head(family_of(changed), name)}
    taken = {name: mapping for name, mapping in mappings.items() if name not in missing}
    return changed, MatchedTensors(mappings, _as_tensors(params, taken, matched), frozenset(missing), matched.left_out)


def _as_tensors(
    params: Params, mappings: Mapping[str, NameMapping], matched: MatchedTensors
) -> dict[str, ParameterTensor]:
    """Return parameters in memory as tensors of the widest dtype of a checkpoint's."""
    dtype = max((tensor.dtype for tensor in matched.tensors.values()), key=lambda dtype: dtype.itemsize)

    def parameter(path: ParameterPath) -> Callable[[], np.ndarray]:
        return lambda: leaf_at(params, path)

    return {name: ParameterTensor(mapping, dtype, parameter(mapping.path)) for name, mapping in mappings.items()}


def require_room_for_tokenizer(folder: Path, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer of a model folder has more tokens than the new vocabulary.

    A folder without a tokenizer passes, and one with a tokenizer that is not read here.
    """
    try:
        tokens = WordPieceTokenizer.load(transformer_folder(folder)).vocab_size
    except (FileNotFoundError, ValueError):
        return
    if tokens > vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokens} tokens, more than the new vocabulary of {vocab_size}; give "
            f"--resize-vocab {tokens} or more, or remove the tokenizer's files from the folder first"
        )


def parse_heads(text: str) -> dict[int, list[int]]:
    """Return the heads by layer in a text like "0:1,2;3:0".

    Raises:
        ValueError: the text is not of this form, or names a layer twice.
    """
    heads: dict[int, list[int]] = {}
    for part in text.split(";"):
        layer, _, numbers = part.partition(":")
        try:
            number, found = int(layer), _numbers(numbers)
        except ValueError:
            raise ValueError(
                f"prune_heads is {text!r}; write layers and their heads like 0:1,2;3:0, which removes heads 1 and 2 of "
                "layer 0 and head 0 of layer 3"
            ) from None
        if number in heads:
            raise ValueError(f"prune_heads is {text!r}; it names layer {number} twice")
        heads[number] = found
    return heads


def parse_layers(text: str) -> list[int]:
    """Return the numbers of layers in a text like "0,2,4".

    Raises:
        ValueError: the text is not of this form.
    """
    try:
        return _numbers(text)
    except ValueError:
        raise ValueError(f"keep_layers is {text!r}; write the numbers of layers like 0,2,4") from None


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
