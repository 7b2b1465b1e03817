"""ELECTRA's pretraining (Clark et al., 2020): a generator fills masked tokens, a discriminator finds the wrong ones."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from flaxbert.encoder_decoder import AnyModel
from flaxbert.families import HeadKind
from flaxbert.families.electra import ElectraConfig
from flaxbert.layers import Params
from flaxbert.losses import IGNORE, Loss, masked_lm, replaced_tokens
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.load import load_parameters
from train.config import Config
from train.data.pretraining.datasets import Segments
from train.data.pretraining.masking import MaskingRule
from train.distributed import WHOLE_BATCH, HostBatch, HostShard, Placement
from train.electra_pair import GENERATOR, ElectraPair, generator_sizes, pair_loss, pair_token_counts, run_pair
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch
from train.tasks.pretraining import Pretraining, PretrainingTask
from train.tasks.task import MODEL_FOLDER, Task, TokenCounts, TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedTokens(Pretraining):
    """Settings of ELECTRA's pretraining, for `model.sizes` or a `model.pretrained` of this family.

    As in the authors' code the generator reads 85 % of the chosen tokens as [MASK] and the others as they are; the
    discriminator gets a token drawn from the generator's probabilities for each.
    """

    segments: Annotated[Segments, tyro.conf.EnumChoicesFromValues] = Segments.FULL_SENTENCES
    """Content of an example; without pairs."""
    generator_size: float = 0.25
    """Heads, width and feed-forward width of the generator, as a share of the discriminator's."""
    discriminator_weight: float = 50.0
    """Factor on the discriminator's loss, beside that of the generator."""

    def __post_init__(self):
        super().__post_init__()
        if self.two_segments:
            raise ValueError("segments is next-sentence; ELECTRA has no such loss: give full-sentences or stream")
        if not 0.0 < self.generator_size <= 1.0:
            raise ValueError(f"generator_size is {self.generator_size}; it must be above 0, and 1 at most")
        if not self.discriminator_weight > 0.0:
            raise ValueError(f"discriminator_weight is {self.discriminator_weight}; it must be above 0")

    @property
    def head(self) -> HeadKind:
        """Head of the model."""
        return HeadKind.REPLACED_TOKENS

    @property
    def masking_rule(self) -> MaskingRule:
        """The number of tokens to predict, and what the generator reads in their place."""
        return dataclasses.replace(super().masking_rule, masked=0.85, random=0.0)

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "ReplacedTokensTask":
        """Open the store or tokenize the text, and split it by documents; see `TaskSettings.prepare`."""
        task = super().prepare(config, host_shard=host_shard, host_group=host_group)
        fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
        generator = self._generator_sizes(fields["config"])
        return ReplacedTokensTask(
            **fields
            | {
                "architecture": functools.partial(ElectraPair, generator_config=generator),
                "generator_config": generator,
                "discriminator_weight": self.discriminator_weight,
            }
        )

    def train_spec(self, config: Config) -> TrainSpec:
        """Return the spec for rows without padding, as long as the settings allow; the text is not read."""
        spec = super().train_spec(config)
        generator = self._generator_sizes(spec.config)
        return dataclasses.replace(
            spec,
            architecture=functools.partial(ElectraPair, generator_config=generator),
            loss=functools.partial(pair_loss, discriminator_weight=self.discriminator_weight),
            token_counts=functools.partial(pair_token_counts, generator_config=generator),
        )

    def _generator_sizes(self, sizes: object) -> ElectraConfig:
        assert isinstance(sizes, ElectraConfig)  # the only family with this head
        return generator_sizes(sizes, self.generator_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedTokensTask(PretrainingTask):
    """The task of ELECTRA's pretraining; the run's model is the discriminator."""

    generator_config: ElectraConfig
    discriminator_weight: float

    soft_targets = Task.soft_targets  # two models have no predictions that a teacher's could be compared with

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Losses of the generator, and of the discriminator times its weight."""
        return ("masked_lm_loss", "weighted_replaced_loss")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss and accuracy of both models, the share of replaced tokens that are found, the training loss."""
        metrics = tuple(f"{part}_{metric}" for part in ("masked_lm", "replaced") for metric in ("loss", "accuracy"))
        return (*metrics, "replaced_recall", "loss", "perplexity")

    def load_model(self, pretrained: Path, config: Config, placement: Placement) -> tuple[AnyModel, Params]:
        """Return the pair with the discriminator of a checkpoint, on the mesh; the generator's own layers are new."""
        checkpoint, attributes = open_checkpoint(pretrained), config.model.attributes
        origin, rules, key = checkpoint.model_folder, placement.rules, jax.random.key(config.run.seed)
        model = self.architecture(self.config, rules=rules, origin=origin, **attributes)
        assert isinstance(model, ElectraPair)
        shardings = placement.parameters(model)[GENERATOR]
        make = jax.jit(lambda key: model.init(key, model.example_ids)["params"][GENERATOR], out_shardings=shardings)
        params = load_parameters(checkpoint, model.discriminator, strict=False, key=key, mesh=placement.mesh)
        return model, {**params, GENERATOR: make(key)}

    def models(
        self, model: AnyModel, params: Params, results: Mapping[str, Evaluation]
    ) -> Mapping[str, tuple[AnyModel, Params]]:
        """Return the discriminator, and the generator."""
        assert isinstance(model, ElectraPair)
        return {
            MODEL_FOLDER: (model.discriminator, model.discriminator_params(params)),
            GENERATOR: (model.generator, model.generator_params(params)),
        }

    def loss(self, model: AnyModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return `pair_loss`."""
        assert isinstance(model, ElectraPair)
        return pair_loss(model, params, batch, key, discriminator_weight=self.discriminator_weight)

    def eval_step(self, model: AnyModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return loss and accuracy of both models, and the share of replaced tokens that the discriminator finds."""
        assert isinstance(model, ElectraPair)
        outputs, words = run_pair(model, params, batch, None), batch["masked_lm_labels"]
        right = (outputs.replaced > 0) == (outputs.labels == 1)
        replaced, counted = outputs.labels == 1, outputs.labels != IGNORE
        filled = jnp.argmax(outputs.tokens, axis=-1) == words
        return EvalStepOutput(
            {
                "masked_lm_loss": masked_lm(outputs.tokens, words),
                "masked_lm_accuracy": Loss(jnp.sum(filled) * 1.0, jnp.sum(words != IGNORE) * 1.0),
                "replaced_loss": replaced_tokens(outputs.replaced, outputs.labels),
                "replaced_accuracy": Loss(jnp.sum(right & counted) * 1.0, jnp.sum(counted) * 1.0),
                "replaced_recall": Loss(jnp.sum(right & replaced) * 1.0, jnp.sum(replaced) * 1.0),
            }
        )

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> dict[str, float]:
        """Return the training loss, and the generator's perplexity; nothing if no token is masked."""
        metrics = super().compute_metrics(name, evaluation, earlier=earlier)
        if metrics:
            metrics["loss"] += self.discriminator_weight * evaluation.means["replaced_loss"]
        return metrics

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Return `pair_token_counts`."""
        return pair_token_counts(batch, generator_config=self.generator_config)

    def write_predictions(
        self, model: AnyModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Compare the generator with the unigram entropy, fill the prompts with it, and rate the discriminator."""
        assert isinstance(model, ElectraPair)
        lines = super().write_predictions(model.generator, model.generator_params(params), folder, results)
        means = results["dev"].means
        found = (
            f"discriminator: {means['replaced_accuracy']:.3f} of all tokens right, "
            f"{means['replaced_recall']:.3f} of the replaced ones found"
        )
        return [*lines, found] if "replaced_recall" in means else lines
