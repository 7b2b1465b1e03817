"""Texts in, answers out: one pipeline a task, on the same batches.

    fill = FillMask.from_pretrained("folder", top_k=3)
    fill(["Paris is the [MASK] of France."])[0].masks[0][0].token

Each is a frozen dataclass of a model, its parameters and its tokenizer. Calling it with a list gives one small
dataclass a text (`SentenceEmbedding` an array); `stream` takes any iterable and gives them one by one, as their
window is ready.
"""

from flaxbert.answers.decoding import Candidate
from flaxbert.pipelines.entities import EntityRecognition, TaggedText
from flaxbert.pipelines.fill_mask import FilledText, Filling, FillMask
from flaxbert.pipelines.multiple_choice import Choice, MultipleChoice
from flaxbert.pipelines.next_sentence import Following, NextSentence
from flaxbert.pipelines.pipeline import Pipeline
from flaxbert.pipelines.question_answering import Answer, QuestionAnswering
from flaxbert.pipelines.sentence_embedding import SentenceEmbedding
from flaxbert.pipelines.sentence_folder import Pooling
from flaxbert.pipelines.text_classification import Classification, Label, TextClassification
from flaxbert.tagging.aggregation import Aggregation, Entity

__all__ = [
    "Aggregation",
    "Answer",
    "Candidate",
    "Choice",
    "Classification",
    "Entity",
    "EntityRecognition",
    "FillMask",
    "FilledText",
    "Filling",
    "Following",
    "Label",
    "MultipleChoice",
    "NextSentence",
    "Pipeline",
    "Pooling",
    "QuestionAnswering",
    "SentenceEmbedding",
    "TaggedText",
    "TextClassification",
]
