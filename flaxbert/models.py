"""Model classes: the base of all, `BertModel`, and the base of those with a head.

They declare parameters and call the functions of `encoder.py`; `apply` is a pure function of a dict of arrays.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Key

from flaxbert import layers
from flaxbert.cache import KeyValueCache
from flaxbert.config import AdaptiveArguments, BertConfig
from flaxbert.encoder import CrossMask, EncoderInputs, Mask, declare_encoder, encode
from flaxbert.execution import AttentionImplementation, Execution, Remat
from flaxbert.layers import Declaration, Params, ParamsDict
from flaxbert.outputs import BaseModelOutput
from flaxbert.sharding import AxisRules

Model = TypeVar("Model", bound="PreTrainedModel")


class ModelInputs(AdaptiveArguments, total=False):
    """The keyword arguments that `BertModel` and every head take beside `input_ids`; see `BertModel.__call__`."""

    attention_mask: Mask | None
    token_type_ids: Int[ArrayLike, "B T"] | None
    position_ids: Int[ArrayLike, "#B T"] | None
    head_mask: Float[ArrayLike, "H"] | Float[ArrayLike, "L H"] | None
    inputs_embeds: Float[ArrayLike, "B T D"] | None
    output_attentions: bool
    output_hidden_states: bool


class CrossAttentionInputs(ModelInputs, total=False):
    """The arguments of models that can attend to the states of an encoder; see `BertModel.__call__`."""

    encoder_hidden_states: Float[ArrayLike, "B X D"] | None
    encoder_attention_mask: CrossMask | None


class DecoderInputs(CrossAttentionInputs, total=False):
    """The arguments of models that can also continue from cached tokens."""

    cache: KeyValueCache | None


class PreTrainedModel(nn.Module):
    """A stateless description of a model; `apply` is a pure function of the parameters.

    Attributes:
        config: the sizes.
        dtype: dtype of matrix products and activations; parameters, softmax, norms and logits stay float32.
        scan: compute the layers in one loop (short compile time) or unrolled; the same parameters either way.
        stacked_layers: the parameters of all layers are one tree with a leading axis; False: a tree for each layer,
            {"0": ..., "1": ...}, which a decoder's loop can update in place. Models with pruned heads always have the
            latter.
        remat: activations saved for the backward pass.
        attn_implementation: see `AttentionImplementation`.
        vocab_multiple: the vocabulary axis is padded to a multiple of it. Rows beyond `config.vocab_size` are zero and
            stay zero, their logits are the lowest float32, and files never hold them.
        rules: layout of parameters and activations on the mesh of `jax.set_mesh`.
        origin: the folder the model was loaded from; `save_pretrained` copies its tokenizer. Not compared.
    """

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: Remat = Remat.NONE
    attn_implementation: AttentionImplementation = AttentionImplementation.EAGER
    vocab_multiple: int = 1
    rules: AxisRules = AxisRules()
    stacked_layers: bool = True
    origin: Path | None = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)

    config_class: ClassVar[type[BertConfig]] = BertConfig
    base_model_prefix: ClassVar[str] = "bert"
    """The name of the base model in the parameters of a head."""
    input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")
    """The arrays that a tokenizer makes and the model takes, in the order of Hugging Face's call."""
    takes_choices: ClassVar[bool] = False
    """True if inputs are [B, C, T] instead of [B, T]."""
    keeps_cls_token: ClassVar[bool] = True
    """`always_keep_cls_token` where neither the call nor the configuration gives it."""

    @nn.nowrap
    def declaration(self) -> Declaration:
        """Return the declaration of every parameter."""
        raise TypeError(f"{type(self).__name__} declares no parameters; use one of its subclasses")

    @nn.nowrap
    def parameter_shapes(self) -> Params:
        """Return the tree of parameters as shapes and dtypes; nothing is allocated."""
        return layers.map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), self.declaration())

    @nn.nowrap
    def logical_axes(self) -> Params:
        """Return the tree of parameters as tuples of logical axis names, one `PartitionSpec` a parameter."""
        return layers.map_specs(lambda spec: PartitionSpec(*spec.axes), self.declaration())

    @property
    def padded_vocab_size(self) -> int:
        """Length of the vocabulary axis of parameters and logits."""
        return -(-self.config.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def layers_are_stacked(self) -> bool:
        """True if the parameters of all layers are one tree with a leading axis of layers."""
        return self.stacked_layers and not self.config.pruned_heads

    @property
    def execution(self) -> Execution:
        """The static settings of the computation."""
        return Execution(self.dtype, self.scan, self.remat, self.attn_implementation, self.rules)

    @property
    def example_ids(self) -> np.ndarray:
        """The smallest input, to initialise with."""
        length = max(self.config.chunk_size_feed_forward, 1)
        return np.zeros((1, 1, length) if self.takes_choices else (1, length), np.int32)

    @classmethod
    def from_pretrained(cls: type[Model], path: str | Path, **arguments: Any) -> tuple[Model, ParamsDict]:
        """Load a checkpoint: return the model and its float32 parameters; see `weights.load.load_model`."""
        from flaxbert.weights.load import load_model  # readers of files, which the model itself does not need

        return load_model(cls, path, **arguments)

    @nn.nowrap
    def _ready_parameters(self) -> Params:
        """Return the parameters ready for use (`layers.prepare`); declare them if the model is being initialised.

        Raises:
            ValueError: lists every parameter that is missing or has another shape.
        """
        declaration = self.declaration()
        if self.is_initializing():
            for name, child in declaration.items():
                self.param(name, functools.partial(layers.fresh_parameters, child, path=name))
        params = self.variables.get("params", {})
        if wrong := list(layers.mismatches(params, declaration)):
            raise ValueError("the parameters do not fit the model:\n  " + "\n  ".join(wrong))
        return layers.prepare(params, declaration, dtype=self.dtype, rules=self.rules)

    @nn.nowrap
    def _dropout_key(self, deterministic: bool) -> Key[Array, ""] | None:
        return None if deterministic else self.make_rng("dropout")

    @nn.nowrap
    def _declare_encoder(self, *, pooler: bool) -> Declaration:
        """Declare the encoder; families with other embeddings override this and `_run_encoder`."""
        if self.config.model_type != self.config_class.model_type:
            given, wanted = type(self.config).__name__, self.config_class.__name__
            raise TypeError(f"config is a {given}; {type(self).__name__} takes a {wanted}")
        rows, stack = self.padded_vocab_size, self.layers_are_stacked
        return declare_encoder(self.config, vocab_rows=rows, pooler=pooler, stack=stack)

    @nn.nowrap
    def _run_encoder(self, params: Params, inputs: EncoderInputs, deterministic: bool) -> BaseModelOutput:
        key = self._dropout_key(deterministic)
        keep_cls = self.keeps_cls_token
        return encode(params, inputs, config=self.config, execution=self.execution, key=key, keep_cls=keep_cls)


class BertModel(PreTrainedModel):
    """The encoder: ids to contextual vectors, and the pooled vector of the first position."""

    add_pooling_layer: bool = True

    @nn.nowrap
    def declaration(self) -> Declaration:
        """Return the declaration of embeddings, layers and pooler."""
        return self._declare_encoder(pooler=self.add_pooling_layer)

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        first_positions_only: bool = False,
        deterministic: bool = True,
        **inputs: Unpack[DecoderInputs],
    ) -> BaseModelOutput:
        """Encode a batch.

        Args:
            input_ids: below `vocab_size`; give these or `inputs_embeds`.
            attention_mask: nonzero where a key may be attended to. [B, T] marks padding (a decoder adds its causal
                mask); [B, T, T] gives each query its own row, and is used as it is. With a cache, [B, T] for the new
                tokens alone.
            token_type_ids: 0 where None.
            position_ids: 0 to T-1 where None; with a cache, counted from its length. Relative positions do not depend
                on them, as in the reference: they count all positions, and with a cache the tokens between two.
            head_mask: factor on each head's attention probabilities, for all layers or for each.
            inputs_embeds: vectors in place of word embeddings.
            output_attentions, output_hidden_states: return them, too.
            layer_config: numbers of the layers that run; the configuration's where None, all where that is None too.
            length_config: number of tokens that each layer keeps, one for each layer of the model, not increasing; None
                as for `layer_config`. Tokens are chosen by the attention that they receive, and padding before no other
                token is kept. `last_hidden_state` has all positions: those dropped have the state of the layer before.
                Numbers above the length of the input keep all. See `length_adaptive.py`.
            always_keep_cls_token: keep the first token in every layer; None as for `layer_config`, then by the class.
            encoder_hidden_states, encoder_attention_mask: states for cross-attention, and nonzero where they may be
                attended to. Without states, layers have no cross-attention, or with a cache that of its states.
            cache: tokens before these (`cache.init_cache`), for a decoder. The output has the cache with these tokens,
                and attention probabilities have its slots as keys.
            first_positions: the first position of each sequence, for batch rows that hold several: `pooler_output` is
                then [B, P, D]. Position 0 alone, and [B, D], where None.
            first_positions_only: `last_hidden_state` is [B, P, D], which is all that the pooler reads. The last
                layer then computes no other position, unless hidden states or attentions are asked for.
            deterministic: False applies dropout and needs `rngs={"dropout": key}`.

        Raises:
            ValueError: ids, types or positions out of range, or more tokens than the cache has room for (unless they
                are being traced; the output is NaN then); a sequence longer than `max_position_embeddings`; both or
                neither of ids and embeddings; arguments of a decoder for an encoder; parameters that do not fit;
                a `length_config` for a decoder, for rows that hold several sequences, or that is not valid.
        """
        given = EncoderInputs(
            input_ids, first_positions=first_positions, first_positions_only=first_positions_only, **inputs
        )
        return self._run_encoder(self._ready_parameters(), given, deterministic)


class PoolerlessModel(BertModel):
    """The encoder of a family without a pooler."""

    add_pooling_layer: bool = False

    @nn.nowrap
    def declaration(self) -> Declaration:
        """Return the declaration of embeddings and layers."""
        if self.add_pooling_layer:
            raise ValueError(f"add_pooling_layer is true; {type(self).__name__} has no pooler: leave it out")
        return super().declaration()


class TaskModel(PreTrainedModel):
    """An encoder with a head; subclasses declare the head and compute its logits."""

    call_arguments: ClassVar[type] = ModelInputs
    """The keyword arguments of a call, as a `TypedDict`."""
    has_pooler: ClassVar[bool] = False
    """True if the head reads the pooled vector."""

    @property
    def head_dropout_prob(self) -> float:
        """Dropout rate before the last layer of the head."""
        return self.config.head_dropout_prob

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the head's parameters."""
        raise TypeError(f"{type(self).__name__} has no head; use one of its subclasses")

    @nn.nowrap
    def declaration(self) -> Declaration:
        """Return the declaration of the encoder and the head."""
        return {self.base_model_prefix: self._declare_encoder(pooler=self.has_pooler), **self.head_declaration()}

    @nn.nowrap
    def _encode(
        self, params: Params, input_ids: ArrayLike | None, deterministic: bool, inputs: Mapping[str, Any], **ours: Any
    ) -> BaseModelOutput:
        """Run the encoder on the `inputs` of a call and on `ours`, the first positions of a head."""
        if unknown := sorted(inputs.keys() - self.call_arguments.__annotations__.keys()):
            raise TypeError(f"{type(self).__name__} takes no argument {unknown[0]!r}")
        given = EncoderInputs(input_ids, **inputs, **ours)
        return self._run_encoder(params[self.base_model_prefix], given, deterministic)
