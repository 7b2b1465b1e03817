"""BERT in JAX/Flax: every head, its losses, sharded training, and Hugging Face weights both ways."""

from flaxbert import functional, losses, sharding, weights

# how a model runs
from flaxbert.base import Attention, PreTrainedModel, Remat

# sizes
from flaxbert.config import BertConfig

# models
from flaxbert.encoder import BertModel
from flaxbert.families import ARCHITECTURES
from flaxbert.heads import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
)

# weights
from flaxbert.pretrained import from_pretrained, save_pretrained

__all__ = [
    "ARCHITECTURES",
    "Attention",
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
    "PreTrainedModel",
    "Remat",
    "from_pretrained",
    "functional",
    "losses",
    "save_pretrained",
    "sharding",
    "weights",
]
