"""Metrics of generated texts; blanks are not compared, because word pieces do not keep those beside punctuation."""

from collections.abc import Sequence


def exact_match(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return the share of texts that have the characters of their reference, blanks left out."""
    pairs = zip(texts, references, strict=True)
    return sum(without_blanks(text) == without_blanks(reference) for text, reference in pairs) / len(texts)


def chrf(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return chrF, 0 to 100 (Popovic, 2015): the F2 score of the n-grams of 1 to 6 characters, by sacrebleu."""
    from sacrebleu.metrics.chrf import CHRF  # half a second

    return float(CHRF().corpus_score(texts, [references]).score)


def without_blanks(text: str) -> str:
    """Return the text without white space."""
    return "".join(text.split())
