"""`BertModel`: embeddings, a stack of post-norm blocks, a pooler (Devlin et al., 2018).

Axis letters, here and in every file of the library:

    B batch   T query length   S key length   D model width   H heads   K head size   F feed-forward width
    V vocabulary   L layers   C choices   N labels
"""

from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from flaxbert import functional
from flaxbert.base import PreTrainedModel
from flaxbert.block import at_first, block_class, stack_of_blocks
from flaxbert.config import BertConfig
from flaxbert.layers import Embedding, LayerNorm, Linear
from flaxbert.outputs import BaseModelOutput
from flaxbert.sharding import constrain


class ModelInputs(TypedDict, total=False):
    """The keyword arguments that `BertModel` and every head take beside `input_ids`."""

    attention_mask: Num[ArrayLike, "B T"] | Bool[ArrayLike, "B T"] | Num[ArrayLike, "B T T"] | Bool[ArrayLike, "B T T"]
    token_type_ids: Int[ArrayLike, "B T"]
    position_ids: Int[ArrayLike, "#B T"]
    head_mask: Float[ArrayLike, "H"] | Float[ArrayLike, "L H"]
    inputs_embeds: Float[ArrayLike, "B T D"]
    output_attentions: bool
    output_hidden_states: bool


class Embeddings(nn.Module):
    """Word, position and token-type vectors, summed, normalised, dropped out."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    vocab_rows: int | None = None  # of the word table, where they are more than the vocabulary's

    def setup(self):
        """Declares the three tables and the norm."""
        c = self.config
        std, width = c.initializer_range, c.hidden_size
        rows = self.vocab_rows or c.vocab_size
        self.word = Embedding(rows, width, "vocab", std, used=c.vocab_size, pad_row=c.pad_token_id)
        self.position = Embedding(c.max_position_embeddings, width, "position", std)
        self.token_type = Embedding(c.type_vocab_size, width, "token_type", std)
        self.norm = LayerNorm(width, c.layer_norm_eps)

    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None,
        token_type_ids: Int[Array, "B T"] | None,
        position_ids: Int[Array, "#B T"] | None,
        inputs_embeds: Float[Array, "B T D"] | None,
        *,
        deterministic: bool,
    ) -> Float[Array, "B T D"]:
        """Sums in float32 and returns the compute dtype."""
        if inputs_embeds is not None:
            words = inputs_embeds.astype(jnp.float32)
        else:
            assert input_ids is not None  # checked by BertModel
            words = self.word(input_ids)
        if token_type_ids is None:
            types = self.token_type.embedding[None, :1]
        else:
            types = self.token_type.select(token_type_ids)
        if position_ids is None:
            positions = self.position.embedding[None, : words.shape[1]]  # a slice: no gather, no scatter
        else:
            positions = self.position(position_ids)
        x = constrain(self.norm(words + types + positions).astype(self.dtype), "batch", None, None)
        key = None if deterministic else self.make_rng("dropout")
        return functional.dropout(x, key, rate=self.config.hidden_dropout_prob)


class BertModel(PreTrainedModel):
    """The encoder: ids to contextual vectors, and the pooled vector of the first position."""

    add_pooling_layer: bool = True

    def setup(self):
        """Declares embeddings and pooler; the blocks are made at call time, when their outputs are known."""
        c = self.config
        self.embeddings = Embeddings(c, self.dtype, self.padded_vocab_size)
        if self.add_pooling_layer:
            size = (c.hidden_size, c.hidden_size)
            self.pooler = Linear("BPD,DE->BPE", size, ("embed", None), c.initializer_range, self.dtype)

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        attention_mask: Num[ArrayLike, "B T"]
        | Bool[ArrayLike, "B T"]
        | Num[ArrayLike, "B T T"]
        | Bool[ArrayLike, "B T T"]
        | None = None,
        token_type_ids: Int[ArrayLike, "B T"] | None = None,
        position_ids: Int[ArrayLike, "#B T"] | None = None,
        head_mask: Float[ArrayLike, "H"] | Float[ArrayLike, "L H"] | None = None,
        inputs_embeds: Float[ArrayLike, "B T D"] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        first_positions_only: bool = False,
        deterministic: bool = True,
    ) -> BaseModelOutput:
        """Encodes a batch.

        Args:
            input_ids: below `vocab_size`; give these or `inputs_embeds`.
            attention_mask: nonzero where a key may be attended to. [B, T] marks padding (a decoder adds its causal
                mask); [B, T, T] is used row by row as it is.
            token_type_ids: 0 where None.
            position_ids: 0 to T-1 where None.
            head_mask: factor on each head's attention weights, for all layers or for each.
            inputs_embeds: vectors in place of word embeddings.
            output_attentions, output_hidden_states: return them too.
            first_positions: where the sequences of a row begin, for rows that hold several: `pooler_output` is then
                [B, P, D]. Position 0 alone, and [B, D], where None.
            first_positions_only: `last_hidden_state` is [B, P, D], which is all that the pooler looks at. The last
                block then computes no other position, unless states or attentions are asked for.
            deterministic: False applies dropout and needs `rngs={"dropout": key}`.

        Raises:
            ValueError: ids, types or positions out of range (where they are not being traced), a sequence
                longer than `max_position_embeddings`, both or neither of ids and embeddings.
        """
        config = self.config
        self._check(input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, first_positions)
        as_array = lambda x: None if x is None else jnp.asarray(x)  # noqa: E731
        x = self.embeddings(
            as_array(input_ids),
            as_array(token_type_ids),
            as_array(position_ids),
            as_array(inputs_embeds),
            deterministic=deterministic,
        )
        mask, head_mask = self._mask(attention_mask, x.shape[1]), self._head_mask(head_mask)
        states, attentions = (), ()
        firsts = as_array(first_positions)
        if first_positions_only and not (output_hidden_states or output_attentions or self.is_initializing()):
            last = self._first_positions(x, mask, head_mask, firsts, deterministic)
        else:
            blocks = stack_of_blocks(
                config,
                config.num_hidden_layers,
                scan=self.scan,
                remat=self.remat,
                name="layers",
                dtype=self.dtype,
                attn_implementation=self.attn_implementation,
                deterministic=deterministic,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
            last, (states, attentions) = blocks(x, mask, head_mask)
            last = at_first(last, firsts) if first_positions_only else last
        return BaseModelOutput(
            last_hidden_state=last,
            pooler_output=self._pooled(last if first_positions_only else at_first(last, firsts), firsts),
            hidden_states=(x, *states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _first_positions(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B 1 #T T"] | None,
        head_mask: Float[Array, "L H"] | None,
        first_positions: Int[Array, "B P"] | None,
        deterministic: bool,
    ) -> Float[Array, "B P D"]:
        """All blocks but the last, then the last for the first positions: two parts of the one stack of parameters."""
        params, last = self.variables["params"]["layers"], self.config.num_hidden_layers - 1
        how: dict[str, Any] = {"dtype": self.dtype, "attn_implementation": self.attn_implementation}
        how |= {"deterministic": deterministic, "parent": None}

        def apply(blocks: nn.Module, x: Array, params: Any, factors: Array | None, **arguments: Any) -> Array:
            rngs = None if deterministic else {"dropout": self.make_rng("dropout")}
            return blocks.apply({"params": params}, x, mask, factors, rngs=rngs, **arguments)[0]

        # The gradient of a split is one concatenation; that of two slices pads both with zeros and adds them up.
        leaves, tree = jax.tree.flatten((params, head_mask))
        before, final = (
            jax.tree.unflatten(tree, parts)
            for parts in zip(*(jax.lax.split(leaf, (last, 1)) for leaf in leaves), strict=True)
        )
        if last:
            x = apply(stack_of_blocks(self.config, last, scan=self.scan, remat=self.remat, **how), x, *before)
        block = block_class(scan=False, remat=self.remat)(self.config, first_positions_only=True, **how)
        return apply(block, x, *jax.tree.map(lambda leaf: leaf[0], final), first_positions=first_positions)

    def _pooled(self, first: Float[Array, "B P D"], positions: Array | None) -> Float[Array, "..."] | None:
        """[B, D], or [B, P, D] where the first positions were given."""
        if not self.add_pooling_layer:
            return None
        pooled = jnp.tanh(self.pooler(first))
        return pooled[:, 0] if positions is None else pooled

    def decode(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores vectors against the word embeddings: the decoder that masked-LM heads share with the input."""
        return self.embeddings.word.decode(x)

    def _mask(self, attention_mask: ArrayLike | None, length: int) -> Bool[Array, "#B 1 #T T"] | None:
        mask = None if attention_mask is None else functional.attention_mask(attention_mask)
        if not self.config.is_decoder or (attention_mask is not None and jnp.ndim(attention_mask) == 3):
            return mask
        causal = functional.causal_mask(length, length)
        return causal if mask is None else causal & mask

    def _head_mask(self, head_mask: ArrayLike | None) -> Float[Array, "L H"] | None:
        if head_mask is None:
            return None
        shape = (self.config.num_hidden_layers, self.config.num_attention_heads)
        if jnp.shape(head_mask) not in (shape, shape[1:]):
            raise ValueError(f"head_mask has shape {jnp.shape(head_mask)}; allowed: {shape[1:]} or {shape}")
        return jnp.broadcast_to(jnp.asarray(head_mask, jnp.float32).reshape(-1, shape[1]), shape)

    def _check(self, input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, first_positions):
        c = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            functional.require_shape("input_ids", input_ids, ("B", "T"))
            batch, length = jnp.shape(input_ids)
        else:
            functional.require_shape("inputs_embeds", inputs_embeds, ("B", "T", c.hidden_size))
            batch, length = jnp.shape(inputs_embeds)[:2]
        # Anything that broadcasts would be taken without a word, a mask [B, 1] for instance.
        functional.require_shape("attention_mask", attention_mask, (batch, length), (batch, length, length))
        functional.require_shape("token_type_ids", token_type_ids, (batch, length))
        functional.require_shape("position_ids", position_ids, (batch, length), (1, length))
        functional.require_shape("first_positions", first_positions, (batch, "P"))
        if length == 0:
            raise ValueError("the sequences have no positions; each needs one token at least")
        limit = c.max_position_embeddings
        if length > limit and position_ids is None:
            raise ValueError(f"the sequence has {length} positions; max_position_embeddings is {limit}: truncate it")
        functional.require_range("input_ids", input_ids, 0, c.vocab_size - 1, why="vocab_size")
        functional.require_range("token_type_ids", token_type_ids, 0, c.type_vocab_size - 1, why="type_vocab_size")
        functional.require_range("position_ids", position_ids, 0, limit - 1, why="max_position_embeddings")
        functional.require_range("first_positions", first_positions, 0, length - 1, why="the sequence's length")
