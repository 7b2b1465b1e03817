"""BERT in JAX/Flax: every head, its losses, sharded training, and Hugging Face weights both ways."""

from flaxbert import dropout, functional, losses, pointer, sharding, surgery, transformer, weights

# pointers to the start and the end of an answer
from flaxbert.answer_pointer import BertForPointerQuestionAnswering

# a decoder's keys and values
from flaxbert.cache import init_cache

# sizes
from flaxbert.config import BertConfig

# an encoder and a decoder together
from flaxbert.encoder_decoder import EncoderDecoderModel

# settings of the computation
from flaxbert.execution import AttentionImplementation, Remat

# models and their heads
from flaxbert.families import ARCHITECTURES
from flaxbert.families.camembert import (
    CamembertConfig,
    CamembertForCausalLM,
    CamembertForMaskedLM,
    CamembertForMultipleChoice,
    CamembertForPointerQuestionAnswering,
    CamembertForQuestionAnswering,
    CamembertForSequenceClassification,
    CamembertForTokenClassification,
    CamembertModel,
)
from flaxbert.families.distilbert import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForPointerQuestionAnswering,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)
from flaxbert.families.electra import (
    ElectraConfig,
    ElectraForCausalLM,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPointerQuestionAnswering,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
)
from flaxbert.families.mpnet import (
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetForMultipleChoice,
    MPNetForPointerQuestionAnswering,
    MPNetForQuestionAnswering,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    MPNetModel,
)
from flaxbert.families.roberta import (
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForPointerQuestionAnswering,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)
from flaxbert.families.xlm_roberta import (
    XLMRobertaConfig,
    XLMRobertaForCausalLM,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForPointerQuestionAnswering,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

# text generation
from flaxbert.generation import GenerationSettings, generate
from flaxbert.heads import (
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from flaxbert.lm_heads import BertForMaskedLM, BertLMHeadModel
from flaxbert.models import BertModel, PreTrainedModel

# weights
from flaxbert.weights.folder import save_pretrained
from flaxbert.weights.load import from_pretrained

__all__ = [
    "ARCHITECTURES",
    "AttentionImplementation",
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPointerQuestionAnswering",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
    "CamembertConfig",
    "CamembertForCausalLM",
    "CamembertForMaskedLM",
    "CamembertForMultipleChoice",
    "CamembertForPointerQuestionAnswering",
    "CamembertForQuestionAnswering",
    "CamembertForSequenceClassification",
    "CamembertForTokenClassification",
    "CamembertModel",
    "DistilBertConfig",
    "DistilBertForMaskedLM",
    "DistilBertForMultipleChoice",
    "DistilBertForPointerQuestionAnswering",
    "DistilBertForQuestionAnswering",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertModel",
    "ElectraConfig",
    "ElectraForCausalLM",
    "ElectraForMaskedLM",
    "ElectraForMultipleChoice",
    "ElectraForPreTraining",
    "ElectraForPointerQuestionAnswering",
    "ElectraForQuestionAnswering",
    "ElectraForSequenceClassification",
    "ElectraForTokenClassification",
    "ElectraModel",
    "EncoderDecoderModel",
    "GenerationSettings",
    "MPNetConfig",
    "MPNetForMaskedLM",
    "MPNetForMultipleChoice",
    "MPNetForPointerQuestionAnswering",
    "MPNetForQuestionAnswering",
    "MPNetForSequenceClassification",
    "MPNetForTokenClassification",
    "MPNetModel",
    "PreTrainedModel",
    "Remat",
    "RobertaConfig",
    "RobertaForCausalLM",
    "RobertaForMaskedLM",
    "RobertaForMultipleChoice",
    "RobertaForPointerQuestionAnswering",
    "RobertaForQuestionAnswering",
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
    "RobertaModel",
    "XLMRobertaConfig",
    "XLMRobertaForCausalLM",
    "XLMRobertaForMaskedLM",
    "XLMRobertaForMultipleChoice",
    "XLMRobertaForPointerQuestionAnswering",
    "XLMRobertaForQuestionAnswering",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaForTokenClassification",
    "XLMRobertaModel",
    "dropout",
    "from_pretrained",
    "functional",
    "generate",
    "init_cache",
    "losses",
    "pointer",
    "save_pretrained",
    "sharding",
    "surgery",
    "transformer",
    "weights",
]

_RENAMED = {"Attention": "AttentionImplementation"}


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        raise AttributeError(f"flaxbert.{name} is now called flaxbert.{_RENAMED[name]}")
    raise AttributeError(f"module 'flaxbert' has no attribute {name!r}")
