"""The three kinds of sequence classification: one label of several, any number of labels, or a number."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.losses import IGNORE
from train.data.labelled_texts import LabelledText, infer_labels, label_ids, label_indicators, label_numbers
from train.metrics.classification import (
    PerClass,
    confusion,
    matthews,
    micro_f1,
    pearson,
    per_class,
    per_label,
    spearman,
)


@dataclasses.dataclass(frozen=True)
class Problem(abc.ABC):
    """What a label is, and what follows from it.

    Attributes:
        kind: the `problem_type` of the model's config.
        labels: their names, in the order of the model's outputs.
    """

    kind: ClassVar[str]
    labels: tuple[str, ...]

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the figures."""

    @abc.abstractmethod
    def targets(self, rows: Sequence[LabelledText]) -> np.ndarray:
        """The labels of rows, all of which have one, [B] or [B, N]."""

    @abc.abstractmethod
    def unlabelled(self, count: int) -> np.ndarray:
        """As `targets`, of rows without labels."""

    @abc.abstractmethod
    def probabilities(self, logits: jax.Array) -> jax.Array:
        """What the model thinks of each label, [..., N]: probabilities, or the number itself."""

    @abc.abstractmethod
    def figures(self, given: np.ndarray, found: np.ndarray) -> dict[str, float]:
        """Metrics of a whole set, from `targets` and `probabilities` [B, N]."""

    @abc.abstractmethod
    def answer(self, found: np.ndarray) -> tuple[str, float]:
        """From the probabilities [N] of a row: the answer as it would stand in a file, and how sure the model is."""

    def report(self, given: np.ndarray, found: np.ndarray) -> PerClass | None:
        """Of each label, where there are labels; arguments as of `figures`."""
        return None

    def confusion(self, given: np.ndarray, found: np.ndarray) -> np.ndarray | None:
        """Which label [N] was taken for which [N], where a row has one; arguments as of `figures`."""
        return None


class OneLabel(Problem):
    """One label of several. Of two labels the second is the one that precision, recall and F1 are about."""

    kind = "single_label_classification"

    @classmethod
    def of(cls, rows: Sequence[LabelledText], names: tuple[str, ...]) -> "OneLabel":
        """With the labels of these rows, where none are named."""
        return cls(names or infer_labels(rows))

    @property
    def names(self) -> tuple[str, ...]:
        """F1 where there are two labels."""
        return ("accuracy", "macro_f1", *["f1"] * (len(self.labels) == 2), "matthews")

    def targets(self, rows: Sequence[LabelledText]) -> np.ndarray:
        """Ids [B]."""
        return np.array(label_ids(rows, self.labels), np.int32)

    def unlabelled(self, count: int) -> np.ndarray:
        """-100 [B]."""
        return np.full(count, IGNORE, np.int32)

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Softmax."""
        return jax.nn.softmax(logits.astype(jnp.float32))

    def figures(self, given: np.ndarray, found: np.ndarray) -> dict[str, float]:
        """Accuracy, mean F1 of the labels, F1 of the second of two, Matthews' coefficient."""
        counts = self.confusion(given, found)
        each = per_class(counts)
        figures = {"accuracy": float(np.trace(counts) / counts.sum()), "macro_f1": float(each.f1.mean())}
        if len(self.labels) == 2:
            figures["f1"] = float(each.f1[1])
        return {**figures, "matthews": matthews(counts)}

    def answer(self, found: np.ndarray) -> tuple[str, float]:
        """The likeliest."""
        best = int(found.argmax())
        return self.labels[best], float(found[best])

    def report(self, given: np.ndarray, found: np.ndarray) -> PerClass:
        """Of each label."""
        return per_class(self.confusion(given, found))

    def confusion(self, given: np.ndarray, found: np.ndarray) -> np.ndarray:
        """By the likeliest label."""
        return confusion(given, found.argmax(axis=-1), len(self.labels))


@dataclasses.dataclass(frozen=True)
class SeveralLabels(Problem):
    """Any number of labels, each thought to hold where its probability is above one half."""

    kind = "multi_label_classification"
    separator: str
    """Between the labels of a row."""

    @classmethod
    def of(cls, rows: Sequence[LabelledText], names: tuple[str, ...], separator: str) -> "SeveralLabels":
        """With the labels of these rows, where none are named."""
        return cls(names or infer_labels(rows, separator=separator), separator)

    @property
    def names(self) -> tuple[str, ...]:
        """Always these."""
        return ("accuracy", "f1", "macro_f1")

    def targets(self, rows: Sequence[LabelledText]) -> np.ndarray:
        """Zeros and ones [B, N]."""
        return label_indicators(rows, self.labels, separator=self.separator).astype(np.float32)

    def unlabelled(self, count: int) -> np.ndarray:
        """NaN [B, N]."""
        return np.full((count, len(self.labels)), np.nan, np.float32)

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Sigmoid."""
        return jax.nn.sigmoid(logits.astype(jnp.float32))

    def figures(self, given: np.ndarray, found: np.ndarray) -> dict[str, float]:
        """Share of rows with exactly the right labels; F1 over all labels, and its mean over the labels."""
        pair = given.astype(int), (found > 0.5).astype(int)
        accuracy = float(np.mean(np.all(pair[0] == pair[1], axis=1)))  # of whole sets of labels
        return {"accuracy": accuracy, "f1": micro_f1(*pair), "macro_f1": float(per_label(*pair).f1.mean())}

    def answer(self, found: np.ndarray) -> tuple[str, float]:
        """Those that are likelier than not, and the probability that just they hold."""
        names = [name for name, probability in zip(self.labels, found, strict=True) if probability > 0.5]
        return self.separator.join(names), float(np.prod(np.maximum(found, 1 - found)))

    def report(self, given: np.ndarray, found: np.ndarray) -> PerClass:
        """Of each label."""
        return per_label(given.astype(int), (found > 0.5).astype(int))


class Number(Problem):
    """A number: regression."""

    kind = "regression"

    @property
    def names(self) -> tuple[str, ...]:
        """Always these."""
        return ("pearson", "spearman")

    def targets(self, rows: Sequence[LabelledText]) -> np.ndarray:
        """Numbers [B]."""
        return label_numbers(rows).astype(np.float32)

    def unlabelled(self, count: int) -> np.ndarray:
        """NaN [B]."""
        return np.full(count, np.nan, np.float32)

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """The numbers themselves."""
        return logits.astype(jnp.float32)

    def figures(self, given: np.ndarray, found: np.ndarray) -> dict[str, float]:
        """Pearson's and Spearman's coefficients."""
        return {"pearson": pearson(given, found[:, 0]), "spearman": spearman(given, found[:, 0])}

    def answer(self, found: np.ndarray) -> tuple[str, float]:
        """The number."""
        return f"{found[0]:.4f}", 1.0


def targets_of(problem: Problem, rows: Mapping[str, Sequence[LabelledText]]) -> dict[str, np.ndarray]:
    """The labels of every set of rows; sets other than "train" may be without any."""
    none = {name for name, found in rows.items() if name != "train" and all(row.label is None for row in found)}
    return {n: problem.unlabelled(len(found)) if n in none else problem.targets(found) for n, found in rows.items()}
