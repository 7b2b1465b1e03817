"""An encoder and a decoder with cross-attention as one model, like Hugging Face's `EncoderDecoderModel`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key, Num

from flaxbert import layers
from flaxbert.functional import linear
from flaxbert.layers import Declaration, Params, declare_linear
from flaxbert.models import PreTrainedModel
from flaxbert.outputs import BaseModelOutput, Seq2SeqLMOutput

PROJECTION = "enc_to_dec_proj"
"""The layer from the encoder's width to the decoder's, where they differ."""


@dataclasses.dataclass(frozen=True)
class EncoderDecoderModel:
    """A stateless description of the two models; `apply` is a pure function of the parameters.

    The parameters are {"encoder": ..., "decoder": ...}, those of the two models, and "enc_to_dec_proj" where their
    widths differ. Of a tied model, "decoder" has only what the encoder lacks: the cross-attention and the head.

    Attributes:
        encoder: a model without head; its last hidden states are what the decoder attends to.
        decoder: a causal language model with cross-attention.
        decoder_start_token_id: the first token of the decoder's input; needed to generate and to shift labels.
        pad_token_id: padding of the decoder's input.
        tied: the decoder's embeddings and layers are the encoder's (`tie_encoder_decoder` of transformers 4).
        origin: the folder that the model, or its encoder, was loaded from; `save_pretrained` copies its tokenizer.
        unused: keys of config.json without a meaning here; they are written back.

    Raises:
        ValueError: the decoder has no cross-attention, or the two cannot be tied: their sizes differ.
    """

    encoder: PreTrainedModel
    decoder: PreTrainedModel
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    tied: bool = False
    origin: Path | None = dataclasses.field(default=None, compare=False, repr=False)
    unused: Mapping[str, object] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        if not self.decoder.config.add_cross_attention:
            raise ValueError(
                "the decoder's config.add_cross_attention is false; an encoder-decoder needs "
                "config.replace(is_decoder=True, add_cross_attention=True)"
            )
        for name in ("decoder_start_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.decoder.config.vocab_size:
                raise ValueError(
                    f"{name} is {value}; the decoder's vocabulary has {self.decoder.config.vocab_size} tokens"
                )

    # -- parameters -------------------------------------------------------------------------------------

    def declaration(self) -> Declaration:
        """Return the declaration of every parameter."""
        declaration: Declaration = {"encoder": self.encoder.declaration(), "decoder": self.decoder.declaration()}
        if self.tied:
            prefix = self.decoder.base_model_prefix
            own = _without(declaration["decoder"][prefix], declaration["encoder"])
            declaration["decoder"] = {**declaration["decoder"], prefix: own}
        width, target = self.encoder.config.hidden_size, self.decoder.config.hidden_size
        if width != target:
            stddev = self.decoder.config.initializer_range
            declaration[PROJECTION] = declare_linear((width, target), ("embed", None), stddev=stddev)
        return declaration

    def parameter_shapes(self) -> Params:
        """Return the tree of parameters as shapes and dtypes; nothing is allocated."""
        return layers.map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), self.declaration())

    def logical_axes(self) -> Params:
        """Return the tree of parameters as tuples of logical axis names, one `PartitionSpec` a parameter."""
        return layers.map_specs(lambda spec: PartitionSpec(*spec.axes), self.declaration())

    def decoder_params(self, params: Params) -> Params:
        """Return the parameters of the decoder, of a tied model with those that it shares with the encoder."""
        if not self.tied:
            return params["decoder"]
        prefix = self.decoder.base_model_prefix
        encoder = {name: tree for name, tree in params["encoder"].items() if name != "pooler"}
        return {**params["decoder"], prefix: _merged(encoder, params["decoder"][prefix])}

    @property
    def example_ids(self) -> np.ndarray:
        """The smallest input, as of `PreTrainedModel`."""
        return self.encoder.example_ids

    def init(self, key: Key[Array, ""], input_ids: ArrayLike) -> dict[str, layers.ParamsDict]:
        """Return {"params": fresh float32 parameters}, as the other models do; `input_ids` change nothing."""
        return {"params": layers.fresh_parameters(self.declaration(), key)}

    @classmethod
    def from_pretrained(cls, path: str | Path, **arguments: Any) -> tuple["EncoderDecoderModel", layers.ParamsDict]:
        """Load a folder of an encoder-decoder; see `weights.encoder_decoder.load_encoder_decoder`."""
        from flaxbert.weights.encoder_decoder import load_encoder_decoder  # readers of files

        return load_encoder_decoder(path, **arguments)

    @classmethod
    def from_two(
        cls, encoder: str | Path, decoder: str | Path, **arguments: Any
    ) -> tuple["EncoderDecoderModel", layers.ParamsDict]:
        """Join two checkpoints, or one given twice; see `weights.encoder_decoder.join_checkpoints`."""
        from flaxbert.weights.encoder_decoder import join_checkpoints  # readers of files

        return join_checkpoints(encoder, decoder, **arguments)

    # -- computation ------------------------------------------------------------------------------------

    def apply(
        self,
        variables: Mapping[str, Params],
        input_ids: Int[ArrayLike, "B X"],
        *,
        decoder_input_ids: Int[ArrayLike, "B T"],
        attention_mask: Num[ArrayLike, "B X"] | None = None,
        decoder_attention_mask: Num[ArrayLike, "B T"] | None = None,
        deterministic: bool = True,
        rngs: Mapping[str, Key[Array, ""]] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Seq2SeqLMOutput:
        """Score the decoder's vocabulary for the token that follows each of `decoder_input_ids`, given the input.

        The arguments are those of the two models: `attention_mask` marks the padding of the input for both. Dropout
        needs `deterministic=False` and `rngs={"dropout": key}`.
        """
        encoder_rngs, decoder_rngs = _split_keys(rngs)
        params = variables["params"]
        asked: dict[str, Any] = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        encoded = self.encode(
            params, input_ids, attention_mask=attention_mask, deterministic=deterministic, rngs=encoder_rngs, **asked
        )
        out: Any = self.decoder.apply(
            {"params": self.decoder_params(params)},
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            deterministic=deterministic,
            rngs=decoder_rngs,
            **asked,
        )
        return Seq2SeqLMOutput(
            logits=out.logits,
            decoder_hidden_states=out.hidden_states,
            decoder_attentions=out.attentions,
            cross_attentions=out.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )

    def encode(self, params: Params, input_ids: Int[ArrayLike, "B X"], **arguments: Any) -> BaseModelOutput:
        """Return the encoder's states, the last of them in the decoder's width; for several calls of the decoder.

        `arguments` are those of the encoder's `apply`.
        """
        encoded: Any = self.encoder.apply({"params": params["encoder"]}, input_ids, **arguments)
        x = encoded.last_hidden_state
        if PROJECTION in params:
            kernel = params[PROJECTION]["kernel"].astype(x.dtype)
            x = linear({**params[PROJECTION], "kernel": kernel}, x, "BTD,DE->BTE")
        return BaseModelOutput(x, hidden_states=encoded.hidden_states, attentions=encoded.attentions)

    def shift_right(self, labels: Int[ArrayLike, "B T"]) -> Int[Array, "B T"]:
        """Return the decoder's input for labels: the start token, then the labels but the last; -100 becomes padding.

        The loss is `losses.masked_lm(logits, labels)`.

        Raises:
            ValueError: the model has no start token or no padding token.
        """
        if self.decoder_start_token_id is None or self.pad_token_id is None:
            raise ValueError(
                f"decoder_start_token_id is {self.decoder_start_token_id} and pad_token_id {self.pad_token_id}; both "
                "are needed: dataclasses.replace(model, decoder_start_token_id=..., pad_token_id=...)"
            )
        labels = jnp.asarray(labels)
        shifted = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=self.decoder_start_token_id)
        return jnp.where(shifted == -100, self.pad_token_id, shifted)


AnyModel = PreTrainedModel | EncoderDecoderModel
"""A model that can be trained, saved and loaded."""


def _without(tree: Declaration, other: Declaration) -> Declaration:
    """Return what only the first of two declarations has.

    Raises:
        ValueError: a parameter of both differs in shape.
    """
    own: Declaration = {}
    for name, child in tree.items():
        shared = other.get(name)
        if shared is None:
            own[name] = child
        elif isinstance(child, Mapping):
            if below := _without(dict(child), dict(shared)):
                own[name] = below
        elif child.shape != shared.shape:
            raise ValueError(
                f"the encoder and the decoder cannot be tied: {name} has the shapes {list(shared.shape)} and "
                f"{list(child.shape)}; their configurations must have the same sizes"
            )
    return own


def _merged(tree: Params, other: Params) -> layers.ParamsDict:
    """Return the union of two trees that share no leaf."""
    merged = {**tree, **other}
    for name in tree.keys() & other.keys():
        merged[name] = _merged(tree[name], other[name])
    return merged


def _split_keys(rngs: Mapping[str, Key[Array, ""]] | None) -> tuple[dict[str, Array] | None, dict[str, Array] | None]:
    """Return the keys of the encoder and those of the decoder."""
    if rngs is None:
        return None, None
    pairs = {name: jax.random.split(key) for name, key in rngs.items()}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
