"""Pairs of a text to read and a text to write: their tokens, and batches that say whose target is to be generated."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from flaxbert.tokenizer import WordPieceTokenizer
from train.data.batches import EvaluationBatches
from train.data.examples import TargetSequences, encoding_arrays
from train.data.labels import LabelledText
from train.distributed import HostBatch
from train.metrics.generated_texts import without_blanks


def target_text(row: LabelledText) -> str:
    """Return the text to write of a row that has been checked to have one."""
    assert row.text_pair is not None
    return row.text_pair


def target_examples(
    rows: Sequence[LabelledText], tokenizer: WordPieceTokenizer, *, max_length: int, max_target_length: int
) -> tuple[TargetSequences, dict[str, int]]:
    """Return the examples of a set, and how many targets no model with this tokenizer and length can write."""
    targets = [target_text(row) for row in rows]
    sources = tokenizer.encode([row.text for row in rows], [None] * len(rows), max_length=max_length)
    pieces, end = tokenizer.piece_ids(targets), tokenizer.token_id(tokenizer.special_tokens.sep)
    room = max_target_length - 1
    labels = [np.asarray([*own, end][:room], np.int32) for own in pieces]
    examples = TargetSequences(*encoding_arrays(sources), labels, (max_length, max_target_length))
    written = (without_blanks(tokenizer.decode(own)) for own in pieces)
    counts = {
        f"targets cut at {max_target_length} tokens": sum(len(own) + 1 > room for own in pieces),
        "targets that the vocabulary cannot spell": sum(
            text != without_blanks(target) for text, target in zip(written, targets, strict=True)
        ),
    }
    return examples, {fact: count for fact, count in counts.items() if count}


@dataclasses.dataclass(frozen=True)
class GenerationBatches:
    """Batches of an evaluation set; "generated" is 1 for rows whose target is generated: those of the first batches."""

    first: EvaluationBatches[TargetSequences]
    others: EvaluationBatches[TargetSequences] | None

    @classmethod
    def of(cls, batches: EvaluationBatches[TargetSequences], generated: int | None) -> "GenerationBatches":
        """Divide a set after its first `generated` examples; all if None."""
        if generated is None or generated >= len(batches.examples):
            return cls(batches, None)
        parts = (batches.examples.part(chosen) for chosen in (slice(generated), slice(generated, None)))
        return cls(*(dataclasses.replace(batches, examples=part) for part in parts))

    def __iter__(self) -> Iterator[HostBatch]:
        for batch in self.first:
            yield {**batch, "generated": batch["weight"]}
        for batch in self.others or ():
            yield {**batch, "generated": np.zeros_like(batch["weight"])}

    def by_example(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the output for each example whose target is generated, in their order."""
        return self.first.by_example(outputs[: len(self.first)])
