"""What the entities that a model found are worth, as a page to read, and what a table of words would have found."""

import collections
from collections.abc import Sequence

from flaxbert.text.tags import OUTSIDE, TagScheme
from train.data.tagged_sentences import TaggedSentence
from train.metrics.entities import EntityScore, EntityScores
from train.summary import markdown_table


def most_frequent_tags(train: Sequence[TaggedSentence], sentences: Sequence[TaggedSentence]) -> list[list[str]]:
    """For every word of `sentences` the tag that it has most often in `train`; O for one that is not there.

    Of tags as frequent the first by name, so that the baseline is the same in every run.
    """
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for sentence in train:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts[word][tag] += 1
    best = {word: min(found, key=lambda tag: (-found[tag], tag)) for word, found in counts.items()}
    return [[best.get(word, OUTSIDE) for word in sentence.words] for sentence in sentences]


def entity_report(
    name: str, scores: EntityScores, *, strict: EntityScores, scheme: TagScheme, baseline: EntityScores
) -> str:
    """A page of Markdown: each type's scores, those of all entities, and with what they compare."""
    rows = [*scores.types.items(), ("all", scores.overall)]
    rows += [(f"all, only as {scheme.name} allows", strict.overall), ("all, most frequent tags", baseline.overall)]
    return "\n".join(
        [
            f"# Entities of {name}",
            "",
            *markdown_table(
                ["type", "precision", "recall", "F1", "support", "predicted"],
                ((kind, *_cells(score)) for kind, score in rows),
            ),
            "",
            "Read leniently, as seqeval's default mode and conlleval do; the line before the last is seqeval's strict",
            "mode. The last line tags each word as the training data most often do, and unknown words O.",
            "",
        ]
    )


def _cells(score: EntityScore) -> list[str | int]:
    ratios = [f"{value:.4f}" for value in (score.precision, score.recall, score.f1)]
    return [*ratios, score.given, score.predicted]
