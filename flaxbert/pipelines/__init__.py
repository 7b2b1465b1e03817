"""Pipelines from texts to results, one class per task.

    fill = FillMaskPipeline.from_pretrained("folder", top_k=3)
    fill(["Paris is the [MASK] of France."])[0].masks[0][0].token

A pipeline is a frozen dataclass of a model, its parameters and its tokenizer. A call takes a list of texts and returns
one small dataclass per text (`SentenceEmbeddingPipeline` returns an array). `stream` takes any iterable and yields the
results one by one.
"""

from flaxbert.pipelines.answer_extraction import ExtractedAnswer, QuestionAnsweringPipeline
from flaxbert.pipelines.entity_recognition import EntityRecognitionPipeline, TaggedText
from flaxbert.pipelines.fill_mask import FilledText, Filling, FillMaskPipeline
from flaxbert.pipelines.pipeline import Pipeline
from flaxbert.pipelines.sentence_embedding import Pooling, SentenceEmbeddingPipeline
from flaxbert.pipelines.text_classification import (
    Choice,
    Classification,
    Label,
    MultipleChoicePipeline,
    NextSentencePipeline,
    NextSentencePrediction,
    TextClassificationPipeline,
)
from flaxbert.pipelines.text_generation import (
    Continuation,
    GeneratedText,
    SequenceToSequencePipeline,
    TextGenerationPipeline,
)
from flaxbert.text.aggregation import Aggregation, Entity
from flaxbert.text.answers import Candidate

__all__ = [
    "Aggregation",
    "Candidate",
    "Choice",
    "Continuation",
    "Classification",
    "Entity",
    "EntityRecognitionPipeline",
    "ExtractedAnswer",
    "FillMaskPipeline",
    "FilledText",
    "Filling",
    "GeneratedText",
    "Label",
    "MultipleChoicePipeline",
    "NextSentencePipeline",
    "NextSentencePrediction",
    "Pipeline",
    "Pooling",
    "QuestionAnsweringPipeline",
    "SentenceEmbeddingPipeline",
    "SequenceToSequencePipeline",
    "TaggedText",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
]


def __getattr__(name: str) -> object:
    new = {"Answer": "ExtractedAnswer", "Following": "NextSentencePrediction"}.get(name, f"{name}Pipeline")
    if new in __all__:
        # ImportError, because `from ... import` would hide the message of an AttributeError.
        raise ImportError(f"flaxbert.pipelines.{name} is now flaxbert.pipelines.{new}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
