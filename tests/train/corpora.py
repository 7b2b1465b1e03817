"""Small corpora as stores of tokens."""

import random
from collections.abc import Sequence

from flaxbert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from train.data.pretraining.store import TokenStore
from train.data.pretraining.tokens import SentenceTokenizer, text_chunks

WORDS = [f"w{i}" for i in range(200)]


def tokenizer(words: Sequence[str] = WORDS) -> WordPieceTokenizer:
    return WordPieceTokenizer.from_tokens([*SPECIAL_TOKENS, *words], lowercase=True)


def documents(count: int, seed: int = 0, *, longest: int = 30) -> list[list[str]]:
    """Documents of 1 to 12 sentences of 1 to `longest` words; a sentence's words tell document and place."""
    chance = random.Random(seed)
    return [
        [" ".join(chance.choices(WORDS, k=chance.randint(1, longest))) for _ in range(chance.randint(1, 12))]
        for _ in range(count)
    ]


def lines(texts: list[list[str]]) -> list[str]:
    return [line for text in texts for line in [*text, ""]]


def store(texts: list[list[str]], *, size: int = 2**19, **how) -> TokenStore:
    made = how.pop("tokenizer", None) or tokenizer()
    tokenise = SentenceTokenizer(made.backend.to_str(), split=False, **how)
    return TokenStore.of(map(tokenise, text_chunks(iter(lines(texts)), size=size)), made)
