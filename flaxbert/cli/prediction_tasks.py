"""Tasks of `flaxbert predict`: pipeline, inputs, and format of the results."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flaxbert import pipelines
from flaxbert.cli.text_inputs import InputShape
from flaxbert.families import FAMILIES

AnyPipeline = pipelines.Pipeline[Any, Any]

_MASKS = tuple(dict.fromkeys(family.special_tokens.mask for family in FAMILIES.values()))


@dataclasses.dataclass(frozen=True)
class PredictionTask:
    """A task of `flaxbert predict`.

    Attributes:
        result_lines: formats the texts of an input and its result as lines of text.
        result_json: converts a result to JSON values.
    """

    pipeline: type[AnyPipeline]
    shape: InputShape
    result_lines: Callable[[Sequence[str], Any], Sequence[str]]
    result_json: Callable[[Any], dict[str, object]] = dataclasses.asdict

    def pipeline_input(self, texts: tuple[str, ...]) -> object:
        """Return the texts of an input as an item of the pipeline."""
        if self.shape.maximum is None:
            return texts[0], texts[1:]
        return texts[0] if len(texts) == 1 else texts


def _require_mask(texts: Sequence[str]) -> str:
    # Inputs are checked before the model is loaded; the pipeline then requires the mask of the model's tokenizer.
    has_mask = any(mask in texts[0] for mask in _MASKS)
    return "" if has_mask else f"no mask token ({' or '.join(_MASKS)}) in {texts[0]!r:.60}"


def _filled_lines(texts: Sequence[str], result: pipelines.FilledText) -> list[str]:
    fillings = [filling for mask in result.masks for filling in mask]
    return [texts[0], *(f"  {filling.probability:.4f}  {filling.token:16} {filling.text}" for filling in fillings)]


def _label_lines(texts: Sequence[str], result: pipelines.Classification) -> list[str]:
    return [" | ".join(texts), *(f"  {label.score:.4f}  {label.name}" for label in result.labels)]


def _next_sentence_lines(texts: Sequence[str], result: pipelines.NextSentencePrediction) -> list[str]:
    return [f"{result.probability:.4f}  {'follows' if result.follows else 'does not'}  {' | '.join(texts)}"]


def _choice_lines(texts: Sequence[str], result: pipelines.Choice) -> list[str]:
    marks = ["*" if index == result.best else " " for index in range(len(result.probabilities))]
    choices = zip(result.probabilities, marks, texts[1:], strict=True)
    return [texts[0], *(f"  {probability:.4f} {mark} {choice}" for probability, mark, choice in choices)]


def _entity_lines(texts: Sequence[str], result: pipelines.TaggedText) -> list[str]:
    entities = (
        f"  {entity.score:.4f}  {entity.type:8} {texts[0][entity.start : entity.end]}" for entity in result.entities
    )
    return [texts[0], *entities]


def _entity_json(result: pipelines.TaggedText) -> dict[str, object]:
    return {"entities": [dataclasses.asdict(entity) for entity in result.entities]}


def _answer_lines(texts: Sequence[str], result: pipelines.ExtractedAnswer) -> list[str]:
    lines = [texts[0], f"  {result.probability:.4f} * {result.text or '(no answer)'}"]
    others = (candidate for candidate in result.candidates if candidate.text != result.text)
    return [*lines, *(f"  {other.probability:.4f}   {other.text or '(no answer)'}" for other in others)]


def _vector_lines(texts: Sequence[str], result: np.ndarray) -> list[str]:
    return [f"[{', '.join(f'{number:.4f}' for number in result[:4])}, ...]  {texts[0]}"]


def _vector_json(result: np.ndarray) -> dict[str, object]:
    return {"vector": result.tolist()}


def _continuation_lines(texts: Sequence[str], result: pipelines.GeneratedText) -> list[str]:
    return [texts[0], *(f"  {found.score:9.4f}  {texts[0]}{found.text}" for found in result.continuations)]


def _written_lines(texts: Sequence[str], result: pipelines.GeneratedText) -> list[str]:
    return [texts[0], *(f"  {found.score:9.4f}  {found.text}" for found in result.continuations)]


_MASKED_TEXT = InputShape(1, 1, f"a text with {' or '.join(_MASKS)}", _require_mask)
_TEXT = InputShape(1, 1, "a text")
_TEXT_TO_TAG = InputShape(1, 1, "a text", may_be_words=True)
_TEXT_OR_PAIR = InputShape(1, 2, "a text, or a pair of texts")
_PAIR = InputShape(2, 2, "a pair of texts")
_CHOICES = InputShape(2, None, "a prompt and its choices")
_QUESTION = InputShape(2, 2, "a question and its context")

TASKS = {
    "fill-mask": PredictionTask(pipelines.FillMaskPipeline, _MASKED_TEXT, _filled_lines),
    "classify": PredictionTask(pipelines.TextClassificationPipeline, _TEXT_OR_PAIR, _label_lines),
    "next-sentence": PredictionTask(pipelines.NextSentencePipeline, _PAIR, _next_sentence_lines),
    "choose": PredictionTask(pipelines.MultipleChoicePipeline, _CHOICES, _choice_lines),
    "tag": PredictionTask(pipelines.EntityRecognitionPipeline, _TEXT_TO_TAG, _entity_lines, _entity_json),
    "answer": PredictionTask(pipelines.QuestionAnsweringPipeline, _QUESTION, _answer_lines),
    "generate": PredictionTask(pipelines.TextGenerationPipeline, _TEXT, _continuation_lines),
    "embed": PredictionTask(pipelines.SentenceEmbeddingPipeline, _TEXT, _vector_lines, _vector_json),
}

PAIR_TASKS = {"generate": PredictionTask(pipelines.SequenceToSequencePipeline, _TEXT, _written_lines)}
"""The tasks of folders that hold two models, an encoder and a decoder."""
