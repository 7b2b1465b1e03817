"""Pipelines that score texts and pairs: labels of a text, next sentence, best choice."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import BertConfig
from flaxbert.families import HeadKind
from flaxbert.files import path_inside, read_json
from flaxbert.layers import Params
from flaxbert.outputs import PreTrainingOutput
from flaxbert.pipelines.batching import InputSequence
from flaxbert.pipelines.pipeline import Pipeline, require_at_least, require_pair, require_text, require_text_pair

TextOrPair = str | tuple[str, str]
PromptWithChoices = tuple[str, Sequence[str]]

# Activations of sentence-transformers' CrossEncoder, by the last part of the name of PyTorch's module.
_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "Identity": lambda logits: logits,
    "Sigmoid": jax.nn.sigmoid,
    "Softmax": jax.nn.softmax,
    "Tanh": jnp.tanh,
}
_IS_NEXT = 0  # BERT's next-sentence labels: 0 the next sentence, 1 a random one


@dataclasses.dataclass(frozen=True)
class Label:
    """Name of a label and its score: a probability, or the predicted number of a regression model."""

    name: str
    score: float


@dataclasses.dataclass(frozen=True)
class Classification:
    """Labels of a text, highest score first."""

    labels: tuple[Label, ...]

    @property
    def best(self) -> Label:
        """Label with the highest score."""
        return self.labels[0]


@dataclasses.dataclass(frozen=True, eq=False)
class TextClassificationPipeline(Pipeline[TextOrPair, Classification]):
    """Scores of the labels of a text or of a pair of texts, as in transformers' pipeline "text-classification".

    The config's `problem_type` determines the scores: softmax for single_label_classification, sigmoid for
    multi_label_classification, the model's outputs for regression. Without a problem type, one label has a sigmoid and
    several labels have a softmax, unless there is an `activation`.

    Attributes:
        top_k: number of labels of each result; None returns all.
        activation: name of PyTorch's module for models without a problem type. `from_pretrained` takes the one of a
            CrossEncoder of sentence-transformers from its folder.

    Raises:
        ValueError: also if the activation is not known.
    """

    top_k: int | None = None
    activation: str | None = None

    heads: ClassVar = (HeadKind.SEQUENCE_CLASSIFICATION,)

    def __post_init__(self):
        super().__post_init__()
        if self.top_k is not None:
            require_at_least("top_k", self.top_k, 1)
        known = [f"torch.nn.{name}" for name in _ACTIVATIONS]
        if self.activation is not None and _short_name(self.activation) not in known:
            raise ValueError(
                f"the activation of the CrossEncoder is {self.activation[:80]!r}; known: {', '.join(known)}. Correct "
                "activation_fn in its config_sentence_transformers.json or config.json"
            )

    @classmethod
    def _saved_options(cls, folder: Path, config: BertConfig, options: Mapping[str, object]) -> Mapping[str, object]:
        """Return the activation of a CrossEncoder, from the keys that sentence-transformers writes or wrote."""
        file = path_inside(folder, "config_sentence_transformers.json")
        settings = read_json(file) if file.is_file() else None
        block = config.unused.get("sentence_transformers")
        names = [values.get("activation_fn") for values in (settings, block) if isinstance(values, dict)]
        names.append(config.unused.get("sbert_ce_default_activation_function"))
        return {"activation": next((name for name in names if isinstance(name, str)), None)}

    def _check(self, item: object, name: str) -> TextOrPair:
        if isinstance(item, str):
            return require_text(item, name)
        return require_text_pair(item, name, "a text, or a pair of texts")

    def _encode(self, items: Sequence[TextOrPair], names: Sequence[str]) -> list[list[InputSequence]]:
        pairs = [(item, None) if isinstance(item, str) else item for item in items]
        return [[sequence] for sequence in self._encode_pairs(pairs)]

    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        config = self.model.config
        logits = self._model_outputs(params, batch).logits
        if config.problem_type == "regression":
            return logits
        if config.problem_type is None and self.activation is not None:
            return _ACTIVATIONS[_short_name(self.activation).removeprefix("torch.nn.")](logits)
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(logits, axis=-1)

    def _decode(
        self, item: TextOrPair, sequences: Sequence[InputSequence], outputs: Iterable[np.ndarray]
    ) -> Classification:
        (output,) = outputs
        scores = zip(self.model.config.id2label, output, strict=True)
        labels = sorted((Label(name, float(score)) for name, score in scores), key=lambda label: -label.score)
        return Classification(tuple(labels[: self.top_k]))


def _short_name(module: str) -> str:
    """Return "torch.nn.Identity" for "torch.nn.modules.linear.Identity"."""
    return re.sub(r"^torch\.nn\.modules\.\w+\.", "torch.nn.", module)


@dataclasses.dataclass(frozen=True)
class NextSentencePrediction:
    """Probability that the second text of a pair follows the first."""

    probability: float

    @property
    def follows(self) -> bool:
        """True if the probability is above 0.5."""
        return self.probability > 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class NextSentencePipeline(Pipeline[tuple[str, str], NextSentencePrediction]):
    """Probability that the second of two texts follows the first (Devlin et al., 2018, section 3.1)."""

    heads: ClassVar = (HeadKind.NEXT_SENTENCE, HeadKind.PRETRAINING)

    def _check(self, item: object, name: str) -> tuple[str, str]:
        return require_text_pair(item, name, "a pair of texts")

    def _encode(self, items: Sequence[tuple[str, str]], names: Sequence[str]) -> list[list[InputSequence]]:
        return [[sequence] for sequence in self._encode_pairs(items)]

    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        out = self._model_outputs(params, batch)
        logits = out.seq_relationship_logits if isinstance(out, PreTrainingOutput) else out.logits
        return jax.nn.softmax(logits, axis=-1)

    def _decode(
        self, item: tuple[str, str], sequences: Sequence[InputSequence], outputs: Iterable[np.ndarray]
    ) -> NextSentencePrediction:
        (output,) = outputs
        return NextSentencePrediction(float(output[_IS_NEXT]))


@dataclasses.dataclass(frozen=True)
class Choice:
    """Index of the best choice, and the probability of each choice."""

    best: int
    probabilities: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class MultipleChoicePipeline(Pipeline[PromptWithChoices, Choice]):
    """Best of a list of choices for each prompt; the number of choices may differ between prompts.

    The model scores each `[CLS] prompt [SEP] choice [SEP]` independently, so every choice is a sequence of its own and
    none is padded to the largest number of choices. The probabilities are a softmax over a prompt's choices.
    """

    heads: ClassVar = (HeadKind.MULTIPLE_CHOICE,)

    def _check(self, item: object, name: str) -> PromptWithChoices:
        prompt, choices = require_pair(item, name, "a pair of a prompt and a list of choices")
        if not isinstance(choices, list | tuple) or not choices:
            raise TypeError(f"{name}[1] is {choices!r:.60}; expected a list of choices, one at least")
        texts = [require_text(choice, f"{name}[1][{index}]") for index, choice in enumerate(choices)]
        return require_text(prompt, f"{name}[0]"), texts

    def _encode(self, items: Sequence[PromptWithChoices], names: Sequence[str]) -> list[list[InputSequence]]:
        sequences = iter(self._encode_pairs((prompt, choice) for prompt, choices in items for choice in choices))
        return [[next(sequences) for _ in choices] for _, choices in items]

    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        one_choice = {name: array[:, None] for name, array in batch.items()}
        return self._model_outputs(params, one_choice).logits[:, 0]

    def _decode(
        self, item: PromptWithChoices, sequences: Sequence[InputSequence], outputs: Iterable[np.ndarray]
    ) -> Choice:
        scores = np.array(list(outputs), np.float32)
        exponentials = np.exp(scores - scores.max())
        return Choice(int(scores.argmax()), tuple((exponentials / exponentials.sum()).tolist()))
