"""Question answering: find the part of a text that answers a question, or that there is none."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from flaxbert import PreTrainedModel, losses
from flaxbert.encoder_decoder import AnyModel
from flaxbert.families import HeadKind
from flaxbert.layers import Params
from flaxbert.losses import Loss
from flaxbert.outputs import AdaptiveOutput, PointerQuestionAnsweringModelOutput, QuestionAnsweringModelOutput
from flaxbert.text.answers import AnswerLogits, RankedAnswers, answer_settings_keys, saved_answer_settings
from flaxbert.text.windows import QuestionWindow, WindowingOptions, question_windows
from train.config import Config
from train.data.bad_rows import BadRow, bad_row_facts
from train.data.batches import EvaluationBatches
from train.data.examples import SpanSequences
from train.data.questions import (
    SquadQuestion,
    SquadQuestions,
    WrongOffsets,
    exclude_questions,
    read_squad,
    trainable_questions,
)
from train.distributed import WHOLE_BATCH, HostShard
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch
from train.tasks.answer_sets import AnswerSet, MatchingRule
from train.tasks.supervised import Supervised, common_fields, rows_digests
from train.tasks.task import Facts, SoftTarget, Task, apply_model, model_config

# A position beyond the end of every sequence: no loss counts it.
_IGNORED_POSITION = np.iinfo(np.int32).max


_Output = QuestionAnsweringModelOutput | PointerQuestionAnsweringModelOutput


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Supervised):
    """Settings of question answering.

    Files are JSON in SQuAD's format. A context that is too long for `max_length` is split into several windows.
    """

    max_length: int = 384
    """Tokens of a window: the question, and part of its context."""
    max_query: int = 64
    """Maximum tokens of a question; further tokens are cut off."""
    window_step: int | None = 128
    """Tokens from the start of a window to that of the next (Google's doc_stride); give this or `window_overlap`."""
    window_overlap: int | None = None
    """Tokens that neighbouring windows share (Hugging Face's stride)."""
    context_first: bool = False
    """Put the context before the question in a window, not after it."""
    head: Literal["linear", "pointer"] = "linear"
    """The model's head: two scores of each token, or a pointer to the start and then, given the start, to the end."""
    n_best: int = 20
    """Number of starts and of ends to combine in a window, and of answers to write for a question."""
    max_answer: int = 30
    """Maximum tokens of an answer."""
    null_threshold: float | None = None
    """A question has no answer if its null odds (the score of "no answer" minus that of the best answer) are above it;
    inf gives every question an answer. None for the threshold with the best F1 on dev, or 0 where there is no dev."""
    impossible: bool = True
    """Train on questions without answer too; if there are any, the model may also predict that there is no answer.
    Otherwise HasAns_exact and HasAns_f1 are the figures of the questions that have one, and the loss is theirs."""
    wrong_offsets: Annotated[WrongOffsets, tyro.conf.EnumChoicesFromValues] = WrongOffsets.REFUSE
    """Treatment of answers that are more than two characters from their offset: repair (nearest occurrence), drop, or
    refuse, which makes the question a bad row."""
    rule: Annotated[MatchingRule, tyro.conf.EnumChoicesFromValues] = MatchingRule.SQUAD
    """Rule for comparing answers: squad, or cmrc for Chinese."""
    examples: int = 0
    """Questions of each evaluated set to print at the end, with the answer found and those of the file."""
    exclude: str | None = None
    """A file or data set; its questions are not trained on if they are about the same context."""

    def __post_init__(self):
        super().__post_init__()
        self.make_windowing()  # raises ValueError for sizes that contradict each other
        if self.n_best < 2 or self.max_answer < 1 or self.examples < 0:
            raise ValueError(
                f"n_best is {self.n_best}, max_answer {self.max_answer}, examples {self.examples}; must be at least 2, "
                "1 and 0"
            )
        if self.null_threshold is not None and not self.null_threshold > -math.inf:
            raise ValueError(
                f"null_threshold is {self.null_threshold}; give a number, inf for a model that always answers, or None"
            )

    def make_windowing(self) -> WindowingOptions:
        """Return the sizes of the windows."""
        return WindowingOptions(
            max_length=self.max_length,
            max_query=self.max_query,
            step=self.window_step,
            overlap=self.window_overlap,
            context_first=self.context_first,
        )

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "QuestionAnsweringTask":
        """Read and check all files."""
        tokenizer = self.require_tokenizer(config)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        sizes = sizes.replace(unused=self._keys_for_predictions(sizes.unused))
        sets, facts, bad_rows = self._read_sets(config.run.seed)
        windows = {
            name: question_windows(
                tokenizer, [q.question for q in rows], [q.context for q in rows], self.make_windowing()
            )
            for name, rows in sets.items()
        }
        spans = {name: _spans(rows, windows[name], impossible=self.impossible) for name, rows in sets.items()}
        answer_sets = {
            name: AnswerSet(
                questions=rows,
                windows=windows[name],
                trained_on_no_answer=any(question.impossible for question in sets["train"]),
                rule=self.rule,
                n_best=self.n_best,
                max_answer=self.max_answer,
            )
            for name, rows in sets.items()
            if name != "train"
        }
        head = HeadKind.ANSWER_POINTER if self.head == "pointer" else HeadKind.QUESTION_ANSWERING
        return QuestionAnsweringTask(
            **common_fields(
                spans, config, sizes, tokenizer, max_length=self.max_length, head=head, host_shard=host_shard
            ),
            facts=facts | {f"{name} windows": len(own) for name, own in spans.items()},
            digests=rows_digests(sets),
            bad_rows=bad_rows,
            sets=answer_sets,
            null_threshold=self.null_threshold,
            beams=self.n_best if self.head == "pointer" else None,
            examples=self.examples,
        )

    def _keys_for_predictions(self, keys: Mapping[str, object]) -> dict[str, object]:
        """Return the keys of config.json with the settings that `flaxbert predict answer` takes by default."""
        settings = {
            "max_length": self.max_length,
            "max_query": self.max_query,
            "step": self.window_step,
            "overlap": self.window_overlap,
            "n_best": self.n_best,
            "max_answer": self.max_answer,
            "context_first": self.context_first or None,
        }
        return answer_settings_keys(settings, keys)

    def _read_sets(self, seed: int) -> tuple[dict[str, Sequence[SquadQuestion]], Facts, dict[str, list[BadRow]]]:
        """Return the questions to train on and those of each evaluated set, facts about them, and bad rows."""
        files = {name: self._read(*source) for name, source in self.sources.items()}
        if not files["train"].labelled:
            raise ValueError(f"{self.train}: none of its questions has an answer; give a file with answers")
        facts = Facts()
        for name, file in files.items():
            wrong = {"repaired": file.repaired, "not repaired": file.not_located}
            if file.numbered:
                facts[f"{name} ids"] = "none: the numbers of the questions, from 1"
            if blank := sum(not row.question for row in file.rows):
                facts[f"{name} questions without a text"] = blank
            facts |= {
                f"{name} answers with a wrong offset, {result}": count for result, count in wrong.items() if count
            }
        # "dev" comes next after "train": its threshold is used on the sets after it.
        sets = self.split_validation({name: file.rows for name, file in files.items()}, _article, seed=seed)
        train = sets["train"]
        if self.exclude is not None:
            train = exclude_questions(train, self._read(self.exclude, None).rows)
            facts["train questions excluded"] = len(sets["train"]) - len(train)
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
        bad_rows = {name: file.rows.bad.rows for name, file in files.items()}
        return sets, facts | bad_row_facts(bad_rows), bad_rows

    def _read(self, source: str, split: str | None) -> SquadQuestions:
        return read_squad(
            source,
            wrong_offsets=self.wrong_offsets,
            split=split,
            bad_rows=self.bad_rows,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnsweringTask(Task):
    """The task of question answering."""

    evaluations: Mapping[str, EvaluationBatches[SpanSequences]]
    sets: Mapping[str, AnswerSet]  # the questions of each evaluated set
    null_threshold: float | None  # as in the settings
    beams: int | None  # starts that a pointer scores ends for; None for a linear head
    examples: int = 0  # as in the settings

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Losses of the first and the last position of an answer."""
        return ("start_loss", "end_loss")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The loss, and the metrics that every rule has."""
        return ("loss", "exact", "f1")

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return half the cross-entropy of starts and half that of ends, as two terms."""
        return _loss(self._outputs(model, params, batch, key, beams=0), batch)

    def soft_targets(self, output: AdaptiveOutput, batch: Batch) -> Sequence[SoftTarget]:
        """Return the logits of every position as start and as end."""
        if self.beams is not None:  # teacher and student would each be given another start
            raise ValueError("a pointer is not distilled: give --task.head linear, or leave --distillation.teacher out")
        assert isinstance(output, QuestionAnsweringModelOutput)
        weight = batch["attention_mask"].any(axis=-1)
        return [SoftTarget(output.start_logits, weight), SoftTarget(output.end_logits, weight)]

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return the loss; the outputs are the `AnswerLogits` of each window."""
        out = self._outputs(model, params, batch, None, beams=self.beams)
        loss = _loss(out, batch)
        logits = AnswerLogits(out.start_logits, out.end_logits)
        if self.beams is not None:
            logits = AnswerLogits(out.start_logits, out.end_logits_by_start, out.starts)
        # An example counts in both terms or in none, so their weights are equal.
        return EvalStepOutput({"loss": Loss(jnp.sum(loss.sum), loss.weight[0])}, logits)

    def _outputs(
        self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None, *, beams: int | None
    ) -> Any:
        """Return the model's output; a pointer's ends are those given the right starts."""
        if self.beams is None:
            return apply_model(model, params, batch, key)
        return apply_model(model, params, batch, key, start_positions=batch["start_positions"], beams=beams)

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> dict[str, float]:
        """Return exact match and F1 by the rule of the set; nothing if its answers are unknown.

        Unless it is given in the settings, the threshold for "no answer" is the best one on dev, for dev and for the
        sets after it.
        """
        answers = self._answers(name, evaluation)
        if name == "dev" and self.null_threshold is None:
            threshold = self.sets[name].best_threshold(answers)
        else:
            threshold = self._threshold(earlier)
        return self.sets[name].compute_metrics(answers, threshold)

    def has_labels(self, name: str) -> bool:
        """Return whether the answers of the set are known."""
        return self.sets[name].labelled

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Write predictions_NAME.json, nbest_predictions_NAME.json and null_odds_NAME.json for every evaluated set.

        A line gives the threshold, which the saved model has among its settings.
        """
        threshold = self._threshold(results)
        lines = []
        for name in self.evaluations if jax.process_index() == 0 else ():
            answers = self._answers(name, results[name])
            self.sets[name].write(folder, name, answers, threshold)
            lines += [f"{name}: {line}" for line in self.sets[name].examples(answers, threshold, self.examples)]
        lines += [f"predictions: {folder / f'predictions_{name}.json'}" for name in self.evaluations]
        if self._learns_no_answer and math.isfinite(threshold):
            # All digits, because the threshold is the null odds of one question, which must not fall out.
            lines.append(
                f"there is no answer where null odds exceed {threshold!r}; the model's folder has this threshold, and "
                "--null-threshold of predict replaces it"
            )
        return lines

    def models(
        self, model: AnyModel, params: Params, results: Mapping[str, Evaluation]
    ) -> Mapping[str, tuple[AnyModel, Params]]:
        """Return the model, with the threshold for "no answer" among its settings if it has learned to give none."""
        threshold = self._threshold(results)
        if not self._learns_no_answer or not math.isfinite(threshold):
            return super().models(model, params, results)
        assert isinstance(model, PreTrainedModel)
        keys = model.config.unused
        keys = answer_settings_keys(saved_answer_settings(keys) | {"null_threshold": float(threshold)}, keys)
        return super().models(model.clone(config=model.config.replace(unused=keys)), params, results)

    @property
    def _learns_no_answer(self) -> bool:
        return any(answer_set.trained_on_no_answer for answer_set in self.sets.values())

    def _answers(self, name: str, evaluation: Evaluation) -> dict[str, RankedAnswers]:
        return self.sets[name].ranked_answers(self.evaluations[name].by_example(evaluation.outputs))

    def _threshold(self, results: Mapping[str, Evaluation]) -> float:
        """Return the threshold of the settings, else that of dev's result, else 0."""
        if self.null_threshold is not None:
            return self.null_threshold
        return results["dev"].means.get("threshold", 0.0) if "dev" in results else 0.0


def _article(question: SquadQuestion) -> str:
    return question.title or question.context


def _spans(
    questions: Sequence[SquadQuestion], windows: Sequence[Sequence[QuestionWindow]], *, impossible: bool
) -> SpanSequences:
    """Return all windows with the positions of the first known answer; [CLS] if a window lacks it or there is none.

    The loss ignores questions whose answers are unknown or not in the context, and those without one if the model does
    not learn from them (not `impossible`).
    """
    positions = []
    for question, own_windows in zip(questions, windows, strict=True):
        answer = next((answer for answer in question.answers if answer.start is not None), None)
        for window in own_windows:
            if answer is not None:
                found = (window.positions(start, end) for start, end in answer.spans)
                positions.append(next(filter(None, found), (0, 0)))
            else:
                positions.append(
                    (0, 0) if question.impossible and impossible else (_IGNORED_POSITION, _IGNORED_POSITION)
                )
    all_windows = [window for own_windows in windows for window in own_windows]
    return SpanSequences(
        ids=[window.ids for window in all_windows],
        types=[window.types for window in all_windows],
        positions=np.asarray(positions, np.int32).reshape(-1, 2),
    )


def _loss(out: _Output, batch: Batch) -> Loss:
    return losses.question_answering(out.start_logits, out.end_logits, batch["start_positions"], batch["end_positions"])
