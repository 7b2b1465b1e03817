"""Texts in, answers out: one pipeline a task, on the same batches.

    fill = FillMaskPipeline.from_pretrained("folder", top_k=3)
    fill(["Paris is the [MASK] of France."])[0].masks[0][0].token

Each is a frozen dataclass of a model, its parameters and its tokenizer. Calling it with a list gives one small
dataclass a text (`SentenceEmbeddingPipeline` an array); `stream` takes any iterable and gives them one by one, as their
window is ready.
"""

from flaxbert.pipelines.answer_extraction import Answer, QuestionAnsweringPipeline
from flaxbert.pipelines.entity_recognition import EntityRecognitionPipeline, TaggedText
from flaxbert.pipelines.fill_mask import FilledText, Filling, FillMaskPipeline
from flaxbert.pipelines.multiple_choice import Choice, MultipleChoicePipeline
from flaxbert.pipelines.next_sentence import Following, NextSentencePipeline
from flaxbert.pipelines.pipeline import Pipeline
from flaxbert.pipelines.sentence_embedding import SentenceEmbeddingPipeline
from flaxbert.pipelines.sentence_folder import Pooling
from flaxbert.pipelines.text_classification import Classification, Label, TextClassificationPipeline
from flaxbert.text.aggregation import Aggregation, Entity
from flaxbert.text.answers import Candidate

__all__ = [
    "Aggregation",
    "Answer",
    "Candidate",
    "Choice",
    "Classification",
    "Entity",
    "EntityRecognitionPipeline",
    "FillMaskPipeline",
    "FilledText",
    "Filling",
    "Following",
    "Label",
    "MultipleChoicePipeline",
    "NextSentencePipeline",
    "Pipeline",
    "Pooling",
    "QuestionAnsweringPipeline",
    "SentenceEmbeddingPipeline",
    "TaggedText",
    "TextClassificationPipeline",
]
