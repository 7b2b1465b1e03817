"""Masked-LM training on plain text: rows of full sentences, new masks every epoch."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import BertForMaskedLM, PreTrainedModel, losses
from flaxbert.losses import IGNORE, Loss
from flaxbert.sharding import fetch, spread
from flaxbert.tokenizer import CLS, MASK, SEP, WordPieceTokenizer
from train.config import Config
from train.data.masking import Masking
from train.data.part import WHOLE, RowPart
from train.data.text import read_documents
from train.evaluate import Evaluation, Measured
from train.peers import ALONE, Peers
from train.step import Batch, Params
from train.tasks.start import load_tokenizer, model_config, outlined_config
from train.tasks.task import HostBatch, Objective, Outline, Task, Work, logits


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModelling:
    """Settings of masked-LM training."""

    text: str
    """A text file (a blank line ends a document), a folder of them, or "pydoc:" for Python's own documentation."""
    tokenizer: Path | None = None
    """A folder or vocab.txt; by default the pretrained model's, or one learnt from the text."""
    vocab_size: int = 8192
    """Of a tokenizer learnt from the text."""
    lowercase: bool = True
    """Whether a learnt tokenizer folds case."""
    max_length: int = 128
    """Tokens in a row."""
    masking_rate: float = 0.15
    heldout: float = 0.05
    """Fraction of the documents kept for evaluation."""
    prompts: tuple[str, ...] = ()
    """Texts with one [MASK], filled at the end of the run."""

    def prepare(self, config: Config, *, part: RowPart = WHOLE, peers: Peers = ALONE) -> "PreparedMaskedLM":
        """Reads the text, splits it by document, and cuts it into rows; raises what `TaskSettings` says."""
        documents = read_documents(self.text)
        train, heldout = _split(documents, self.heldout, config.run.seed)
        tokenizer = load_tokenizer(config, self.tokenizer) or self._learn(train, peers)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        for prompt in self.prompts:
            ids = tokenizer.encode([prompt], [None], max_length=self.max_length)[0].ids
            if ids.count(tokenizer.id(MASK)) != 1:
                raise ValueError(f"the prompt {prompt!r} must hold {MASK} once within {self.max_length} tokens")
        masking = Masking.of(tokenizer, rate=self.masking_rate, length=self.max_length)
        rows = {name: _rows(tokenizer, texts, self.max_length) for name, texts in (("train", train), ("dev", heldout))}
        batch_size = config.run.batch_size
        entropy = _unigram_entropy(rows["dev"], tokenizer)
        return PreparedMaskedLM(
            tokenizer=tokenizer,
            config=sizes,
            settings=self,
            unigram_entropy=entropy,
            train=_TrainRows(rows["train"], masking, batch_size, config.run.seed, part),
            steps_per_epoch=-(-len(rows["train"]) // batch_size),
            evaluations={"dev": _EvaluationRows(rows["dev"], masking, batch_size, part)},
            facts={
                "documents": f"{len(train):,} to train on, {len(heldout):,} held out",
                "tokens": f"{sum(map(len, rows['train'])):,} to train on, {sum(map(len, rows['dev'])):,} held out",
                "vocabulary": tokenizer.vocab_size,
                "unigram entropy of the held-out tokens (nat)": round(entropy, 4),
            },
        )

    def outline(self, config: Config) -> Outline:
        """Rows without padding, as long as the settings let them be; the text is not read."""
        sizes = outlined_config(config, self.tokenizer, learnt=self.vocab_size, max_length=self.max_length)
        # Which ids stand there does not matter.
        masking = Masking(sizes.vocab_size, 0, 0, (), self.masking_rate, self.max_length)
        row = _masked_row(np.ones(self.max_length, np.int32), masking, np.random.default_rng(0), self.max_length)
        rows = config.run.batch_size
        batch = {name: np.broadcast_to(value, (rows, *value.shape)) for name, value in row.items()}
        return Outline(objective=MaskedLM(config=sizes), batch=batch)

    def _learn(self, texts: Sequence[str], peers: Peers) -> WordPieceTokenizer:
        # By one host for all: what is learnt twice may differ in a few tokens.
        def tokens() -> list[str]:
            return WordPieceTokenizer.train(texts, vocab_size=self.vocab_size, lowercase=self.lowercase).vocabulary

        return WordPieceTokenizer.of(peers.share(tokens), lowercase=self.lowercase)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """The `Objective` of masked-LM training."""

    architecture: type[PreTrainedModel] = BertForMaskedLM

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Cross-entropy at the masked positions."""
        return losses.masked_lm(self._logits(model, params, batch, key), batch["masked_lm_labels"])

    def work(self, batch: HostBatch) -> Work:
        """Its tokens, and the positions scored."""
        return Work.of(batch["attention_mask"], predictions=int((batch["masked_lm_labels"] != IGNORE).sum()))

    def _logits(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        names = ("input_ids", "attention_mask", "masked_lm_positions")
        return logits(model, params, {name: batch[name] for name in names}, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedMaskedLM(MaskedLM, Task):
    """The `Task` of masked-LM training."""

    settings: MaskedLanguageModelling
    unigram_entropy: float

    def measure(self, model: PreTrainedModel, params: Params, batch: Batch) -> Measured:
        """Loss and accuracy at the masked positions."""
        scores, labels = self._logits(model, params, batch, None), batch["masked_lm_labels"]
        right = jnp.sum(jnp.argmax(scores, axis=-1) == labels)  # never so at -100
        count = jnp.sum(labels != IGNORE)
        return Measured({"loss": losses.masked_lm(scores, labels), "accuracy": Loss(right * 1.0, count * 1.0)})

    def finish(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Sets the loss beside the unigram baseline, and fills the prompts, each with the five likeliest tokens."""
        loss = results["dev"].means["loss"]
        gain = f"{self.unigram_entropy - loss:.3f} below" if loss < self.unigram_entropy else "not below"
        baseline = f"held-out loss {loss:.3f} nat, {gain} the unigram entropy of {self.unigram_entropy:.3f}"
        return [baseline] + [f"{prompt}  ->  {_fill(self, model, params, prompt)}" for prompt in self.settings.prompts]


class _TrainRows:
    """Endless: every epoch in another order and with other masks, both functions of (seed, index)."""

    def __init__(self, rows: list[np.ndarray], masking: Masking, size: int, seed: int, part: RowPart):
        length = max(map(len, rows))
        self._size, self._part = size, part
        self._masked: Any = (
            grain.MapDataset.source(rows)
            .seed(seed)
            .shuffle()
            .repeat()
            .random_map(lambda row, generator: _masked_row(row, masking, generator, length))
        )

    def __getitem__(self, index: int) -> HostBatch:
        return _stacked([self._masked[index * self._size + row] for row in self._part.rows(self._size).tolist()])


class _EvaluationRows:
    """Rows in batches, each row's masks drawn from its own number: the same in every evaluation."""

    def __init__(self, rows: list[np.ndarray], masking: Masking, size: int, part: RowPart):
        self._rows, self._masking, self._size, self._part = rows, masking, size, part
        self._length = max(map(len, rows))

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def __iter__(self):
        for start in range(0, len(self._rows), self._size):
            yield _stacked([self._row(start + row) for row in self._part.rows(self._size).tolist()])

    def _row(self, number: int) -> dict[str, np.ndarray]:
        filling = number >= len(self._rows)
        row = self._rows[0 if filling else number]
        masked = _masked_row(row, self._masking, np.random.default_rng(number), self._length)
        if not filling:
            return masked
        return {name: np.full_like(v, IGNORE if name == "masked_lm_labels" else 0) for name, v in masked.items()}


def _stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _split(documents: list[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"heldout is {fraction}; it must lie between 0 and 1")
    if len(documents) < 2:
        raise ValueError("the text is one document; put blank lines between documents, so that some can be held out")
    order = np.random.default_rng(seed).permutation(len(documents))
    count = min(max(1, round(fraction * len(documents))), len(documents) - 1)
    heldout = set(order[:count].tolist())
    train = [text for i, text in enumerate(documents) if i not in heldout]
    return train, [text for i, text in enumerate(documents) if i in heldout]


def _rows(tokenizer: WordPieceTokenizer, documents: Sequence[str], length: int) -> list[np.ndarray]:
    """All documents one after another, [SEP] between them, cut into [CLS] ... [SEP] rows; only the last is shorter."""
    cls, sep = tokenizer.id(CLS), tokenizer.id(SEP)
    pieces = [np.asarray([*ids, sep], np.int32) for ids in tokenizer.pieces(documents) if ids]
    if not pieces:
        raise ValueError("the text holds no tokens")
    stream = np.concatenate(pieces)[:-1]
    inner = length - 2
    return [
        np.concatenate([[cls], stream[i : i + inner], [sep]]).astype(np.int32) for i in range(0, len(stream), inner)
    ]


def _masked_row(
    row: np.ndarray, masking: Masking, generator: np.random.Generator, length: int
) -> dict[str, np.ndarray]:
    masked = masking(row, generator)
    fill = length - len(row)
    return {
        **masked,
        "input_ids": np.pad(masked["input_ids"], (0, fill), constant_values=masking.pad_id),
        "attention_mask": np.pad(np.ones(len(row), np.int32), (0, fill)),
    }


def _unigram_entropy(rows: list[np.ndarray], tokenizer: WordPieceTokenizer) -> float:
    """Entropy (nat) of the rows' own token frequencies, special tokens left out: no unigram model does better."""
    ids = np.concatenate(rows)
    counts = np.bincount(ids[~np.isin(ids, tokenizer.special_ids)])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _fill(task: PreparedMaskedLM, model: PreTrainedModel, params: Params, prompt: str) -> str:
    ids = np.asarray([task.tokenizer.encode([prompt], [None], max_length=task.settings.max_length)[0].ids])
    place = int(np.argmax(ids[0] == task.tokenizer.id(MASK)))

    def likeliest(params: Params) -> tuple[jax.Array, jax.Array]:
        out: Any = model.apply({"params": params}, ids)
        return jax.lax.top_k(jax.nn.softmax(out.logits[0, place]), 5)

    # Where other hosts hold parts of the parameters, only a compiled function may look at them all.
    found = jax.jit(likeliest)(params) if spread(params) else likeliest(params)
    probabilities, best = map(fetch, found)
    named = zip(task.tokenizer.tokens(best), probabilities, strict=True)
    return "  ".join(f"{token} {probability:.0%}" for token, probability in named)
