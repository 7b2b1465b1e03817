"""A generator and a discriminator of ELECTRA (Clark et al., 2020) that share their embeddings, and their loss."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxbert.families.electra import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining
from flaxbert.layers import Declaration, Params
from flaxbert.losses import IGNORE, Loss, masked_lm, replaced_tokens
from train.distributed import HostBatch
from train.flops import train_flops
from train.step import Batch
from train.tasks.pretraining import pretraining_token_counts
from train.tasks.task import TokenCounts, apply_model

GENERATOR = "generator"
"""The generator's folder in that of the run, and its name in the parameters."""


class ElectraPair(ElectraForPreTraining):
    """A discriminator and a generator that share the tables of embeddings and their norm.

    The parameters are those of the discriminator, and as "generator" those of the generator that are not shared.
    """

    generator_config: ElectraConfig = ElectraConfig()

    @property
    def discriminator(self) -> ElectraForPreTraining:
        """The discriminator alone."""
        return ElectraForPreTraining(self.config, origin=self.origin, **self._attributes)

    @property
    def generator(self) -> ElectraForMaskedLM:
        """The generator alone."""
        return ElectraForMaskedLM(self.generator_config, **self._attributes)

    @property
    def _attributes(self) -> dict[str, Any]:
        names = ("dtype", "scan", "remat", "attn_implementation", "vocab_multiple", "rules", "stacked_layers")
        return {name: getattr(self, name) for name in names}

    @nn.nowrap
    def declaration(self) -> Declaration:
        """Return the declaration of the discriminator, and of what the generator has to itself."""
        generator = self.generator.declaration()
        encoder = dict(generator[self.base_model_prefix])
        own = {name: part for name, part in encoder.pop("embeddings").items() if name == "projection"}
        encoder |= {"embeddings": own} if own else {}
        return super().declaration() | {GENERATOR: generator | {self.base_model_prefix: encoder}}

    @nn.nowrap
    def discriminator_params(self, params: Params) -> Params:
        """Return the parameters of the discriminator."""
        return {name: part for name, part in params.items() if name != GENERATOR}

    @nn.nowrap
    def generator_params(self, params: Params) -> Params:
        """Return the parameters of the generator, with those that it shares."""
        own, prefix = params[GENERATOR], self.base_model_prefix
        shared = {name: part for name, part in params[prefix]["embeddings"].items() if name != "projection"}
        encoder = {**own[prefix], "embeddings": shared | dict(own[prefix].get("embeddings", {}))}
        return {**own, prefix: encoder}


def generator_sizes(config: ElectraConfig, fraction: float) -> ElectraConfig:
    """Return the generator's sizes: the discriminator's with a fraction of its heads, width and feed-forward width."""
    heads = max(1, round(fraction * config.num_attention_heads))
    return dataclasses.replace(
        config,
        hidden_size=heads * config.head_size,
        num_attention_heads=heads,
        intermediate_size=max(1, round(fraction * config.intermediate_size)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOutputs:
    """Logits of both models for a batch.

    Attributes:
        tokens: the generator's, at the masked positions [B, M, V].
        replaced: the discriminator's, above 0 for a token that was replaced [B, T].
        labels: 1 for a token that was replaced, 0 for others, -100 for padding [B, T].
    """

    tokens: jax.Array
    replaced: jax.Array
    labels: jax.Array


def run_pair(model: ElectraPair, params: Params, batch: Batch, key: jax.Array | None) -> PairOutputs:
    """Fill the masked tokens with draws from the generator, and run the discriminator on the result.

    `key` is for dropout and the draws; None applies no dropout, and draws with a key of its own.
    """
    generator_key = discriminator_key = None
    draw_key = jax.random.key(0)
    if key is not None:
        generator_key, draw_key, discriminator_key = jax.random.split(key, 3)
    inputs = {name: values for name, values in batch.items() if name != "first_positions"}
    tokens = apply_model(model.generator, model.generator_params(params), inputs, generator_key).logits
    drawn = jax.random.categorical(draw_key, jax.lax.stop_gradient(tokens))
    corrupted, labels = replace_tokens(inputs, drawn)
    del inputs["masked_lm_positions"]
    out = apply_model(
        model.discriminator,
        model.discriminator_params(params),
        {**inputs, "input_ids": corrupted},
        discriminator_key,
    )
    return PairOutputs(tokens=tokens, replaced=out.logits, labels=labels)


def replace_tokens(batch: Batch, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the ids with `drawn` [B, M] at the masked positions [B, T], and the labels of `PairOutputs`."""
    ids, labels = batch["input_ids"], batch["masked_lm_labels"]
    # Positions of unused slots lie behind the row: nothing is written there.
    positions = jnp.where(labels == IGNORE, ids.shape[1], batch["masked_lm_positions"])
    put = jax.vmap(lambda row, where, values: row.at[where].set(values.astype(row.dtype), mode="drop"))
    original, corrupted = put(ids, positions, labels), put(ids, positions, drawn)
    is_token = (batch["segment_ids"] if "segment_ids" in batch else batch["attention_mask"]) > 0
    return corrupted, jnp.where(is_token, (corrupted != original).astype(jnp.int32), IGNORE)


def pair_loss(
    model: ElectraPair, params: Params, batch: Batch, key: jax.Array | None, *, discriminator_weight: float
) -> Loss:
    """Return the generator's mean over masked tokens, and the discriminator's over all tokens times its weight."""
    outputs = run_pair(model, params, batch, key)
    tokens = masked_lm(outputs.tokens, batch["masked_lm_labels"])
    replaced = replaced_tokens(outputs.replaced, outputs.labels)
    sums = jnp.stack([tokens.sum, discriminator_weight * replaced.sum])
    return Loss(sums, jnp.stack([tokens.weight, replaced.weight]))


def pair_token_counts(batch: HostBatch, *, generator_config: ElectraConfig) -> TokenCounts:
    """Return the tokens of a batch; the generator's work is among `other_flops`."""
    counts = pretraining_token_counts(batch)
    flops = train_flops(generator_config, tokens=counts.tokens, squares=counts.squares, predictions=counts.predictions)
    return dataclasses.replace(counts, predictions=0, other_flops=flops)
