"""Command `python -m train.data.casing_pairs TEXT... --output FILE.tsv`: a task for sequence to sequence from any text.

The source is a sentence in lower case and without punctuation, the target is the sentence.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import tyro

from flaxbert.files import atomic_write
from flaxbert.text.tables import read_lines

# A blank after a full stop and closing quotation marks, but not after a title.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)[”’\"')]*\s+")
# Apostrophes and hyphens inside of words are no punctuation.
_PUNCTUATION = re.compile(r"(?!(?<=\w)['’-](?=\w))[^\w\s]|_")


@dataclasses.dataclass(frozen=True)
class CasingPairs:
    """Write the sentences of texts as a table: in lower case without punctuation, and as they are."""

    texts: tyro.conf.Positional[tuple[Path, ...]]
    """Text files, a paragraph a line."""
    output: Path
    """The table, a .tsv."""
    min_words: int = 3
    """Smallest number of words of a sentence."""
    max_words: int = 12
    """Largest number of words of a sentence."""

    def run(self) -> int:
        """Write the table and return the number of sentences."""
        count = 0
        with atomic_write(self.output) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as table:
            table.write("source\ttarget\n")
            for path in self.texts:
                for line in read_lines(path, expected="text, a paragraph a line"):
                    for target in sentences(line):
                        source = without_casing(target)
                        if self.min_words <= len(source.split()) <= self.max_words:
                            table.write(f"{source}\t{target}\n")
                            count += 1
        return count


def sentences(paragraph: str) -> Iterator[str]:
    """Yield the sentences of a paragraph that begin with a capital letter, without quotation marks around them."""
    for part in _SENTENCE_END.split(" ".join(paragraph.split())):
        sentence = part.strip("“”‘’\"'()*_ ")
        if sentence[:1].isupper() and sentence[-1] in ".!?":
            yield sentence


def without_casing(sentence: str) -> str:
    """Return the sentence in lower case and without punctuation."""
    return " ".join(_PUNCTUATION.sub(" ", sentence.lower()).split())


def main(arguments: list[str]) -> int:
    """Write the table; return 0, or 2 where a file cannot be read or written."""
    pairs = tyro.cli(CasingPairs, args=arguments)
    try:
        print(f"{pairs.output}: {pairs.run()} sentences")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
