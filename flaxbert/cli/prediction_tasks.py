"""Tasks of `flaxbert predict`: pipeline, inputs, and format of the results."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flaxbert.cli.text_inputs import InputShape
from flaxbert.families import FAMILIES
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

_MASKS = tuple(dict.fromkeys(family.special_tokens.mask for family in FAMILIES.values()))


@dataclasses.dataclass(frozen=True)
class PredictionTask:
    """A task of `flaxbert predict`.

    Attributes:
        pipeline: class of the pipeline.
        shape: number of texts of an input.
        pipeline_input: converts the texts of an input to an item of the pipeline.
        result_lines: formats the texts of an input and its result as lines of text.
        result_json: converts a result to JSON values.
        options: names of the pipeline's attributes that have a flag of the same name.
    """

    pipeline: type[Pipeline[Any, Any]]
    shape: InputShape
    pipeline_input: Callable[[Sequence[str]], Any]
    result_lines: Callable[[Sequence[str], Any], Sequence[str]]
    result_json: Callable[[Any], dict[str, Any]] = dataclasses.asdict
    options: tuple[str, ...] = ()

    def format_result(self, texts: Sequence[str], result: Any) -> str:
        """Return an input and its result as text for a terminal."""
        return "\n".join(escape_control_characters(line, lines=False) for line in self.result_lines(texts, result))


def _require_mask(texts: Sequence[str]) -> str:
    # Inputs are checked before the model is loaded; the pipeline then requires the mask of the model's tokenizer.
    has_mask = any(mask in texts[0] for mask in _MASKS)
    return "" if has_mask else f"no mask token ({' or '.join(_MASKS)}) in {texts[0]!r:.60}"


def _first_text(texts: Sequence[str]) -> str:
    return texts[0]


def _text_or_pair(texts: Sequence[str]) -> str | Sequence[str]:
    return texts[0] if len(texts) == 1 else texts


def _prompt_and_choices(texts: Sequence[str]) -> tuple[str, list[str]]:
    return texts[0], list(texts[1:])


def _filled_lines(texts: Sequence[str], result: FilledText) -> list[str]:
    fillings = [filling for mask in result.masks for filling in mask]
    return [texts[0], *(f"  {filling.probability:.4f}  {filling.token:16} {filling.text}" for filling in fillings)]


def _label_lines(texts: Sequence[str], result: Classification) -> list[str]:
    return [" | ".join(texts), *(f"  {label.score:.4f}  {label.name}" for label in result.labels)]


def _next_sentence_lines(texts: Sequence[str], result: NextSentencePrediction) -> list[str]:
    return [f"{result.probability:.4f}  {'follows' if result.follows else 'does not'}  {' | '.join(texts)}"]


def _choice_lines(texts: Sequence[str], result: Choice) -> list[str]:
    lines = [texts[0]]
    for index, (choice, probability) in enumerate(zip(texts[1:], result.probabilities, strict=True)):
        lines.append(f"  {probability:.4f} {'*' if index == result.best else ' '} {choice}")
    return lines


def _entity_lines(texts: Sequence[str], result: TaggedText) -> list[str]:
    lines = [texts[0]]
    for entity in result.entities:
        lines.append(f"  {entity.score:.4f}  {entity.type:8} {result.text[entity.start : entity.end]}")
    return lines


def _entity_json(result: TaggedText) -> dict[str, Any]:
    return {"entities": [dataclasses.asdict(entity) for entity in result.entities]}


def _answer_lines(texts: Sequence[str], result: ExtractedAnswer) -> list[str]:
    lines = [texts[0], f"  {result.probability:.4f} * {result.text or '(no answer)'}"]
    others = (candidate for candidate in result.candidates if candidate.text != result.text)
    return [*lines, *(f"  {other.probability:.4f}   {other.text or '(no answer)'}" for other in others)]


def _vector_lines(texts: Sequence[str], result: np.ndarray) -> list[str]:
    return [f"[{', '.join(f'{number:.4f}' for number in result[:4])}, ...]  {texts[0]}"]


def _vector_json(result: np.ndarray) -> dict[str, Any]:
    return {"vector": result.tolist()}


PREDICTION_TASKS = {
    "fill-mask": PredictionTask(
        FillMaskPipeline,
        InputShape(1, 1, f"a text with {' or '.join(_MASKS)}", _require_mask),
        pipeline_input=_first_text,
        result_lines=_filled_lines,
        options=("top_k", "targets"),
    ),
    "classify": PredictionTask(
        TextClassificationPipeline,
        InputShape(1, 2, "a text, or a pair of texts"),
        pipeline_input=_text_or_pair,
        result_lines=_label_lines,
        options=("top_k",),
    ),
    "next-sentence": PredictionTask(
        NextSentencePipeline,
        InputShape(2, 2, "a pair of texts"),
        pipeline_input=tuple,
        result_lines=_next_sentence_lines,
    ),
    "choose": PredictionTask(
        MultipleChoicePipeline,
        InputShape(2, None, "a prompt and its choices"),
        pipeline_input=_prompt_and_choices,
        result_lines=_choice_lines,
    ),
    "tag": PredictionTask(
        EntityRecognitionPipeline,
        InputShape(1, 1, "a text"),
        pipeline_input=_first_text,
        result_lines=_entity_lines,
        result_json=_entity_json,
        options=("aggregation", "overlap"),
    ),
    "answer": PredictionTask(
        QuestionAnsweringPipeline,
        InputShape(2, 2, "a question and its context"),
        pipeline_input=tuple,
        result_lines=_answer_lines,
        options=("top_k", "null_threshold", "max_answer", "max_query", "n_best", "step", "overlap"),
    ),
    "embed": PredictionTask(
        SentenceEmbeddingPipeline,
        InputShape(1, 1, "a text"),
        pipeline_input=_first_text,
        result_lines=_vector_lines,
        result_json=_vector_json,
        options=("pooling", "normalize"),
    ),
}

TASK_OPTIONS = {name for task in PREDICTION_TASKS.values() for name in task.options}
"""Names of the flags that only some tasks have."""
