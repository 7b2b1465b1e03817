"""The tasks of `flaxbert predict`: what a row of texts is to each, and how its answers are told."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flaxbert.cli.text_inputs import InputShape
from flaxbert.files import escape_control_characters
from flaxbert.pipelines import (
    Choice,
    Classification,
    EntityRecognitionPipeline,
    ExtractedAnswer,
    FilledText,
    FillMaskPipeline,
    MultipleChoicePipeline,
    NextSentencePipeline,
    NextSentencePrediction,
    Pipeline,
    QuestionAnsweringPipeline,
    SentenceEmbeddingPipeline,
    TaggedText,
    TextClassificationPipeline,
)
from flaxbert.tokenizer import MASK


@dataclasses.dataclass(frozen=True)
class PredictionTask:
    """A task.

    Attributes:
        pipeline: what computes it.
        shape: of its rows.
        item: a row as the pipeline takes it.
        lines: a row and its answer, for reading.
        values: the answer as JSON's values.
        options: of the pipeline, that the command's flags of these names set.
    """

    pipeline: type[Pipeline[Any, Any]]
    shape: InputShape
    item: Callable[[Sequence[str]], Any]
    lines: Callable[[Sequence[str], Any], Sequence[str]]
    values: Callable[[Any], dict[str, Any]] = dataclasses.asdict
    options: tuple[str, ...] = ()


def _masked(texts: Sequence[str]) -> str:
    return "" if MASK in texts[0] else f"no {MASK} in {texts[0]!r:.60}"


def _filled(texts: Sequence[str], answer: FilledText) -> list[str]:
    fillings = [filling for mask in answer.masks for filling in mask]
    return [texts[0], *(f"  {found.probability:.4f}  {found.token:16} {found.text}" for found in fillings)]


def _classified(texts: Sequence[str], answer: Classification) -> list[str]:
    return [" | ".join(texts), *(f"  {label.score:.4f}  {label.name}" for label in answer.labels)]


def _followed(texts: Sequence[str], answer: NextSentencePrediction) -> list[str]:
    return [f"{answer.probability:.4f}  {'follows' if answer.follows else 'does not'}  {' | '.join(texts)}"]


def _chosen(texts: Sequence[str], answer: Choice) -> list[str]:
    choices = enumerate(zip(texts[1:], answer.probabilities, strict=True))
    told = (f"  {p:.4f} {'*' if number == answer.best else ' '} {choice}" for number, (choice, p) in choices)
    return [texts[0], *told]


def _tagged(texts: Sequence[str], answer: TaggedText) -> list[str]:
    return [texts[0], *(f"  {e.score:.4f}  {e.type:8} {answer.text[e.start : e.end]}" for e in answer.entities)]


def _answered(texts: Sequence[str], answer: ExtractedAnswer) -> list[str]:
    lines = [texts[0], f"  {answer.probability:.4f} * {answer.text or '(no answer)'}"]
    others = (candidate for candidate in answer.candidates if candidate.text != answer.text)
    return [*lines, *(f"  {other.probability:.4f}   {other.text or '(no answer)'}" for other in others)]


def _embedded(texts: Sequence[str], answer: np.ndarray) -> list[str]:
    return [f"[{', '.join(f'{number:.4f}' for number in answer[:4])}, ...]  {texts[0]}"]


TASKS = {
    "fill-mask": PredictionTask(
        FillMaskPipeline,
        InputShape(1, 1, f"a text with {MASK}", _masked),
        item=lambda texts: texts[0],
        lines=_filled,
        options=("top_k", "targets"),
    ),
    "classify": PredictionTask(
        TextClassificationPipeline,
        InputShape(1, 2, "a text, or a pair of texts"),
        item=lambda texts: texts[0] if len(texts) == 1 else texts,
        lines=_classified,
        options=("top_k",),
    ),
    "next-sentence": PredictionTask(
        NextSentencePipeline, InputShape(2, 2, "a pair of texts"), item=tuple, lines=_followed
    ),
    "choose": PredictionTask(
        MultipleChoicePipeline,
        InputShape(2, None, "a prompt and its choices"),
        item=lambda texts: (texts[0], list(texts[1:])),
        lines=_chosen,
    ),
    "tag": PredictionTask(
        EntityRecognitionPipeline,
        InputShape(1, 1, "a text"),
        item=lambda texts: texts[0],
        lines=_tagged,
        values=lambda answer: {"entities": [dataclasses.asdict(entity) for entity in answer.entities]},
        options=("aggregation", "overlap"),
    ),
    "answer": PredictionTask(
        QuestionAnsweringPipeline,
        InputShape(2, 2, "a question and its context"),
        item=tuple,
        lines=_answered,
        options=("top_k", "null_threshold", "max_answer", "max_query", "n_best", "step", "overlap"),
    ),
    "embed": PredictionTask(
        SentenceEmbeddingPipeline,
        InputShape(1, 1, "a text"),
        item=lambda texts: texts[0],
        lines=_embedded,
        values=lambda answer: {"vector": answer.tolist()},
        options=("pooling", "normalize"),
    ),
}

OPTIONS = {name for task in TASKS.values() for name in task.options}


def told(task: PredictionTask, texts: Sequence[str], answer: Any) -> str:
    """A row and its answer, for a terminal."""
    return "\n".join(escape_control_characters(line, lines=False) for line in task.lines(texts, answer))
