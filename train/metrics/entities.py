"""Precision, recall and F1 of entities: right is what has the same words and the same type.

All values are those of seqeval 1.2 on the same tags, and so, read leniently, of CoNLL's script conlleval.
"""

import collections
import dataclasses
from collections.abc import Sequence

from flaxbert.text.tags import EntitySpan, TagScheme, entity_spans, strict_entity_spans


@dataclasses.dataclass(frozen=True)
class EntityScore:
    """How many entities were given (the support), predicted, and right; ratios of nothing are 0."""

    given: int = 0
    predicted: int = 0
    right: int = 0

    @property
    def precision(self) -> float:
        """The share of those predicted that is right."""
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """The share of those given that was found."""
        return self.right / self.given if self.given else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of the two."""
        return 2 * self.right / (self.given + self.predicted) if self.right else 0.0


@dataclasses.dataclass(frozen=True)
class EntityScores:
    """Of all entities together (the micro average), and of each type, in the order of their names."""

    overall: EntityScore
    types: dict[str, EntityScore]


def entity_scores(
    given: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, scheme: TagScheme | None = None
) -> EntityScores:
    """The scores of a corpus: counts are added up over its sentences, then divided once.

    Args:
        given: the right tags of each sentence.
        predicted: as many tags for each.
        scheme: read only what it allows as entities (seqeval's strict mode); None reads leniently (its default mode).

    Raises:
        ValueError: not as many sentences, or tags of one, in both; as `spans` and `strict_spans`.
    """
    if [len(tags) for tags in given] != [len(tags) for tags in predicted]:
        raise ValueError("given and predicted differ in the number of sentences, or of the tags of one")
    counts = [collections.Counter() for _ in range(3)]
    for pair in zip(given, predicted, strict=True):
        one, other = ({*_read(tags, scheme)} for tags in pair)
        for count, entities in zip(counts, (one, other, one & other), strict=True):
            count.update(span.type for span in entities)
    kinds = sorted(counts[0].keys() | counts[1].keys())
    types = {kind: EntityScore(*(count[kind] for count in counts)) for kind in kinds}
    return EntityScores(EntityScore(*(count.total() for count in counts)), types)


def _read(tags: Sequence[str], scheme: TagScheme | None) -> list[EntitySpan]:
    return entity_spans(tags) if scheme is None else strict_entity_spans(tags, scheme)
