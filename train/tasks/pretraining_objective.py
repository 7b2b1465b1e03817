"""What pretraining learns and measures: masked words, and whether one segment follows the other."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import BertForPreTraining, PreTrainedModel, functional, losses
from flaxbert.losses import IGNORE, Loss
from flaxbert.sharding import fetch_global, is_multihost
from flaxbert.tokenizer import MASK
from train.evaluate import EvalStepOutput, Evaluation
from train.step import Batch, Params
from train.tasks.task import HostBatch, Objective, Task, TokenCounts, outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingObjective(Objective):
    """The `Objective` of pretraining: masked words, and next sentences where the architecture scores them."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Of words and of pairs, where there are pairs."""
        return ("masked_lm_loss", "next_sentence_loss") if self.architecture is BertForPreTraining else ()

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Cross-entropy at the masked positions, plus that of next sentences."""
        words, pairs = self._scores(model, params, batch, key)
        if pairs is None:
            return losses.masked_lm(words, batch["masked_lm_labels"])
        return losses.pretraining(words, pairs, batch["masked_lm_labels"], batch["next_sentence_labels"])

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Its tokens, and the positions scored."""
        predictions = int((batch["masked_lm_labels"] != IGNORE).sum())
        if "attention_mask" in batch:
            return TokenCounts.of(batch["attention_mask"], predictions=predictions)
        return TokenCounts.of_segments(batch["segment_ids"], batch["first_positions"].shape[1], predictions=predictions)

    def _scores(
        self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Of words at the masked positions; and of pairs, None where nobody asks."""
        pairs = self.architecture is BertForPreTraining
        names = ["input_ids", "masked_lm_positions"] + ["token_type_ids"] * pairs
        inputs: dict[str, Any] = {name: batch[name] for name in names}
        if "segment_ids" in batch:
            inputs |= {"attention_mask": functional.packed_mask(batch["segment_ids"])}
            inputs |= {"position_ids": batch["position_ids"]}
            inputs |= {"first_positions": batch["first_positions"]} if pairs else {}
        else:
            inputs["attention_mask"] = batch["attention_mask"]
        out = outputs(model, params, inputs, key)
        return (out.prediction_logits, out.seq_relationship_logits) if pairs else (out.logits, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedPretraining(PretrainingObjective, Task):
    """The `Task` of pretraining."""

    max_length: int
    prompts: tuple[str, ...]
    unigram_entropy: float

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss and accuracy of words, and of pairs where there are pairs; the loss that is trained on; perplexity."""
        names = ["masked_lm", "next_sentence"][: 2 if self.terms else 1]
        return (*(f"{name}_{what}" for name in names for what in ("loss", "accuracy")), "loss", "perplexity")

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Loss and accuracy at the masked positions, and of next sentences."""
        words, pairs = self._scores(model, params, batch, None)
        found = {"masked_lm": (words, batch["masked_lm_labels"], losses.masked_lm)}
        if pairs is not None:
            found["next_sentence"] = (pairs, batch["next_sentence_labels"], losses.next_sentence)
        metrics = {}
        for name, (scores, labels, loss) in found.items():
            right = jnp.sum(jnp.argmax(scores, axis=-1) == labels)  # never so at -100
            metrics[f"{name}_loss"] = loss(scores, labels)
            metrics[f"{name}_accuracy"] = Loss(right * 1.0, jnp.sum(labels != IGNORE) * 1.0)
        return EvalStepOutput(metrics)

    def compute_metrics(self, name: str, found: Evaluation) -> dict[str, float]:
        """The loss that is trained on, and the perplexity of masked words."""
        means = found.means
        loss = means["masked_lm_loss"] + means.get("next_sentence_loss", 0.0)
        return {"loss": loss, "perplexity": math.exp(min(means["masked_lm_loss"], 700.0))}

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Sets the loss beside the unigram baseline, and fills the prompts, each with the five likeliest tokens."""
        loss = results["dev"].means["masked_lm_loss"]
        gain = f"{self.unigram_entropy - loss:.3f} below" if loss < self.unigram_entropy else "not below"
        baseline = f"held-out loss {loss:.3f} nat, {gain} the unigram entropy of {self.unigram_entropy:.3f}"
        return [baseline] + [f"{prompt}  ->  {self._filled(model, params, prompt)}" for prompt in self.prompts]

    def _filled(self, model: PreTrainedModel, params: Params, prompt: str) -> str:
        ids = np.asarray([self.tokenizer.encode([prompt], [None], max_length=self.max_length)[0].ids])
        place = np.argmax(ids == self.tokenizer.token_id(MASK), axis=1)[:, None]
        batch: dict[str, Any] = {
            "input_ids": ids,
            "token_type_ids": np.zeros_like(ids),
            "attention_mask": np.ones_like(ids),
        }

        def likeliest(params: Params) -> Any:
            words, _ = self._scores(model, params, {**batch, "masked_lm_positions": place}, None)
            return jax.lax.top_k(jax.nn.softmax(words[0, 0]), 5)

        # Where other hosts hold parts of the parameters, only a compiled function may look at them all.
        found = jax.jit(likeliest)(params) if is_multihost(params) else likeliest(params)
        probabilities, best = map(fetch_global, found)
        named = zip(self.tokenizer.tokens(best), probabilities, strict=True)
        return "  ".join(f"{token} {probability:.0%}" for token, probability in named)
