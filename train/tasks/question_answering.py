"""Question answering: the part of a text that answers a question about it, or that there is none."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from flaxbert import BertForQuestionAnswering, PreTrainedModel, losses
from flaxbert.losses import Loss
from flaxbert.text.answers import RankedAnswers
from flaxbert.text.windows import QuestionWindow, WindowingOptions, question_windows
from train.config import Config
from train.data.batches import EvaluationBatches
from train.data.examples import SpanSequences
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.data.questions import (
    SquadQuestion,
    SquadQuestions,
    WrongOffsets,
    exclude_questions,
    read_squad,
    trainable_questions,
)
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.host_group import SINGLE_HOST, HostGroup
from train.step import Batch, Params
from train.tasks.answer_sets import AnswerSet, Rule
from train.tasks.start import model_config
from train.tasks.supervised import Supervised, as_batches
from train.tasks.task import HostBatch, Task, TokenCounts, TrainSpec, padded_outputs

# A position beyond every sequence, which no loss counts.
_NOWHERE = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Supervised):
    """Settings of question answering.

    Files are JSON in SQuAD's format. A context that is too long for `max_length` becomes several windows.
    """

    max_length: int = 384
    """Tokens of a window: question, and part of its context."""
    max_query: int = 64
    """Tokens of a question; those beyond are cut off."""
    window_step: int | None = 128
    """Tokens from the start of a window to that of the next (Google's doc_stride); give this or `window_overlap`."""
    window_overlap: int | None = None
    """Tokens that a window has in common with the next (Hugging Face's stride)."""
    n_best: int = 20
    """Starts and ends to look at in a window, and answers to tell of a question."""
    max_answer: int = 30
    """Tokens of an answer."""
    null_threshold: float | None = None
    """A question whose null odds exceed it has no answer; None for that with the best F1 on dev (0 without dev)."""
    impossible: bool = True
    """Train on questions that have no answer, too; where any are trained on, none may also be predicted."""
    wrong_offsets: Annotated[WrongOffsets, tyro.conf.EnumChoicesFromValues] = WrongOffsets.REPAIR
    """What becomes of answers that are not where the file says: repair (nearest place), drop, refuse."""
    rule: Annotated[Rule, tyro.conf.EnumChoicesFromValues] = Rule.SQUAD
    """How answers are compared: squad, or cmrc for Chinese."""
    exclude: str | None = None
    """A file or data set whose questions are not trained on, where they are about the same context."""

    def __post_init__(self):
        super().__post_init__()
        self.windowing  # noqa: B018  (checks its settings)
        if self.n_best < 2 or self.max_answer < 1:
            raise ValueError(
                f"n_best is {self.n_best}, max_answer {self.max_answer}; must be at least 2 and at least 1"
            )

    @property
    def windowing(self) -> WindowingOptions:
        """How contexts are cut."""
        return WindowingOptions(self.max_length, self.max_query, self.window_step, self.window_overlap)

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "PreparedAnswering":
        """Reads and checks all files before anything is trained; raises what `TaskSettings` says."""
        tokenizer = self.load_tokenizer(config)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        sets, facts = self._sets(config.run.seed)
        windows = {
            name: question_windows(tokenizer, [q.question for q in rows], [q.context for q in rows], self.windowing)
            for name, rows in sets.items()
        }
        spans = {name: _spans(rows, windows[name]) for name, rows in sets.items()}
        taught_empty = any(question.impossible for question in sets["train"])
        how = taught_empty, self.rule, self.n_best, self.max_answer
        return PreparedAnswering(
            tokenizer=tokenizer,
            config=sizes,
            architecture=BertForQuestionAnswering,
            sets={name: AnswerSet(rows, windows[name], *how) for name, rows in sets.items() if name != "train"},
            null_threshold=self.null_threshold,
            **as_batches(spans, config, tokenizer, max_length=self.max_length, host_shard=host_shard),
            facts=facts | {f"{name} windows": len(found) for name, found in spans.items()},
        )

    def train_spec(self, config: Config) -> TrainSpec:
        """From the data: the length of a batch is that of its longest window."""
        return TrainSpec.of(self.prepare(config))

    def _sets(self, seed: int) -> tuple[dict[str, Sequence[SquadQuestion]], dict[str, int]]:
        """The questions to train on and those of each set to evaluate; in figures, what was done to the files' own."""
        files = {name: self._read(*source) for name, source in self.sources.items()}
        if not files["train"].labelled:
            raise ValueError(f"{self.train}: none of its questions has an answer; give a file with answers")
        facts = {}
        for name, found in files.items():
            wrong = {"repaired": found.repaired, "lost": found.lost}
            facts |= {f"{name} answers with a wrong place, {what}": count for what, count in wrong.items() if count}
        # "dev" comes next: what is found on it is used on the others.
        sets = self.with_dev({name: found.rows for name, found in files.items()}, _article, seed=seed)
        train = sets["train"]
        given = len(train)
        if self.exclude is not None:
            train = exclude_questions(train, self._read(self.exclude, None).rows)
            facts["train questions excluded"] = given - len(train)
        usable = trainable_questions(train, impossible=self.impossible)
        if not usable:
            raise ValueError(
                f"{self.train}: no question is left to train on; look at exclude, impossible, validation_split"
            )
        if len(usable) < len(train):
            facts["train questions not used"] = len(train) - len(usable)
        sets["train"] = usable
        for name, rows in sets.items():
            facts |= {f"{name} questions": len(rows), f"{name} without answer": sum(q.impossible for q in rows)}
        return sets, facts

    def _read(self, source: str, split: str | None) -> SquadQuestions:
        return read_squad(source, wrong_offsets=self.wrong_offsets, split=split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedAnswering(Task):
    """The `Task` of question answering.

    Attributes:
        sets: the questions of each evaluation.
        null_threshold: the one that was given.
    """

    evaluations: Mapping[str, EvaluationBatches]
    sets: Mapping[str, AnswerSet]
    null_threshold: float | None
    # The threshold of the last evaluation of dev, which comes before that of test.
    _found: dict[str, float] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Half the cross-entropy of starts plus half that of ends, as two terms."""
        return _loss(_logits(model, params, batch, key), batch)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those that all rules have."""
        return ("loss", "exact", "f1")

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """The loss; the outputs are scores of every position as start and as end [B, 2, T]."""
        scores = _logits(model, params, batch, None)
        loss = _loss(scores, batch)
        # A row counts in both terms or in none, so their weights are the same.
        return EvalStepOutput({"loss": Loss(jnp.sum(loss.sum), loss.weight[0])}, scores)

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Its tokens."""
        return TokenCounts.of(batch["attention_mask"])

    def compute_metrics(self, name: str, found: Evaluation) -> dict[str, float]:
        """Exact match and F1, by the rule that fits the set; none where its answers are not known."""
        answers = self._answers(name, found)
        return self.sets[name].compute_metrics(answers, self._threshold(name, answers))

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Writes predictions_NAME.json, nbest_predictions_NAME.json and null_odds_NAME.json for every evaluation.

        Tells the threshold, which `flaxbert predict answer` wants to be given.
        """
        for name in self.evaluations if jax.process_index() == 0 else ():
            answers = self._answers(name, results[name])
            self.sets[name].write(folder, name, answers, self._threshold(name, answers))
        lines = [f"predictions: {folder / f'predictions_{name}.json'}" for name in self.evaluations]
        if any(found.taught_empty for found in self.sets.values()):
            lines.append(f"there is no answer where null odds exceed {self._limit:.4f}: --null-threshold of predict")
        return lines

    def _answers(self, name: str, found: Evaluation) -> dict[str, RankedAnswers]:
        return self.sets[name].answers(self.evaluations[name].by_example(found.outputs))

    def _threshold(self, name: str, answers: Mapping[str, RankedAnswers]) -> float:
        """`_limit`, found first where these are the answers of dev, which come before those of other sets."""
        if name == "dev" and self.null_threshold is None:
            self._found[name] = self.sets[name].best_threshold(answers)
        return self._limit

    @property
    def _limit(self) -> float:
        """The threshold given, else that found on dev, else 0."""
        return self._found.get("dev", 0.0) if self.null_threshold is None else self.null_threshold


def _article(question: SquadQuestion) -> str:
    return question.title or question.context


def _spans(questions: Sequence[SquadQuestion], windows: Sequence[Sequence[QuestionWindow]]) -> SpanSequences:
    """All windows, and where the first known answer is in each; [CLS] where it is not, or where there is none.

    Where no answer is known that could be found, the loss does not count.
    """
    positions = []
    for question, parts in zip(questions, windows, strict=True):
        answer = next((answer for answer in question.answers if answer.start is not None), None)
        for window in parts:
            if answer is not None and answer.start is not None:
                positions.append(window.positions(answer.start, answer.start + len(answer.text)) or (0, 0))
            else:
                positions.append((0, 0) if question.impossible else (_NOWHERE, _NOWHERE))
    every = [window for parts in windows for window in parts]
    return SpanSequences(
        ids=[window.ids for window in every],
        types=[window.types for window in every],
        positions=np.asarray(positions, np.int32).reshape(-1, 2),
    )


def _logits(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    found = padded_outputs(model, params, batch, key)
    return jnp.stack([found.start_logits, found.end_logits], axis=1)


def _loss(scores: jax.Array, batch: Batch) -> Loss:
    places = batch["start_positions"], batch["end_positions"]
    return losses.question_answering(scores[:, 0], scores[:, 1], *places)
