"""Precision, recall and F1 of entities: a prediction is correct if both its words and its type are right.

All values equal those of seqeval 1.2 on the same tags; read leniently, also those of CoNLL's script conlleval.
"""

import collections
import dataclasses
from collections.abc import Sequence

from flaxbert.text.tags import EntitySpan, TagScheme, entity_spans, strict_entity_spans


@dataclasses.dataclass(frozen=True)
class EntityScore:
    """Counts of entities and the ratios of these; a ratio without a denominator is 0."""

    support: int = 0  # entities in the data
    predicted: int = 0
    correct: int = 0  # entities that are in both

    @property
    def precision(self) -> float:
        """Share of the predicted entities that is correct."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the entities in the data that was predicted."""
        return self.correct / self.support if self.support else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.correct / (self.support + self.predicted) if self.correct else 0.0


@dataclasses.dataclass(frozen=True)
class EntityScores:
    """Score of all entities together (the micro average), and of each type, in alphabetical order."""

    overall: EntityScore
    types: dict[str, EntityScore]


def entity_scores(
    labels: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], *, scheme: TagScheme | None = None
) -> EntityScores:
    """Return the scores of a corpus, from counts added up over its sentences.

    With a `scheme` only entities that are valid in it count (seqeval's strict mode); without one, tags are read
    leniently (its default mode).

    Raises:
        ValueError: the number of sentences, or of the tags of a sentence, differs; or as `strict_entity_spans`.
    """
    if [len(tags) for tags in labels] != [len(tags) for tags in predictions]:
        raise ValueError("labels and predictions differ in the number of sentences, or in the tags of a sentence")
    support, predicted, correct = (collections.Counter() for _ in range(3))
    for sentence_labels, sentence_predictions in zip(labels, predictions, strict=True):
        expected, found = {*_spans(sentence_labels, scheme)}, {*_spans(sentence_predictions, scheme)}
        support.update(span.type for span in expected)
        predicted.update(span.type for span in found)
        correct.update(span.type for span in expected & found)
    types = {
        name: EntityScore(support[name], predicted[name], correct[name])
        for name in sorted(support.keys() | predicted.keys())
    }
    return EntityScores(EntityScore(support.total(), predicted.total(), correct.total()), types)


def _spans(tags: Sequence[str], scheme: TagScheme | None) -> list[EntitySpan]:
    return entity_spans(tags) if scheme is None else strict_entity_spans(tags, scheme)
