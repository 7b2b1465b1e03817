"""XLM-RoBERTa (Conneau et al., 2020): RoBERTa of a hundred languages, with a SentencePiece vocabulary."""

import dataclasses
from typing import ClassVar

from flaxbert.families.family import HeadKind
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
    roberta_family,
)


@dataclasses.dataclass(frozen=True)
class XLMRobertaConfig(RobertaConfig):
    """RoBERTa's configuration under another name; defaults are Hugging Face's."""

    model_type: ClassVar[str] = "xlm-roberta"
    vocab_size: int = 30522


class XLMRobertaModel(RobertaModel):
    """The encoder."""

    config_class = XLMRobertaConfig


class XLMRobertaForMaskedLM(RobertaForMaskedLM):
    """Tokens at masked positions."""

    config_class = XLMRobertaConfig


class XLMRobertaForCausalLM(RobertaForCausalLM):
    """The next token."""

    config_class = XLMRobertaConfig


class XLMRobertaForSequenceClassification(RobertaForSequenceClassification):
    """One label, several labels or a number for a whole sequence."""

    config_class = XLMRobertaConfig


class XLMRobertaForMultipleChoice(RobertaForMultipleChoice):
    """One of C continuations."""

    config_class = XLMRobertaConfig


class XLMRobertaForTokenClassification(RobertaForTokenClassification):
    """A label for every position."""

    config_class = XLMRobertaConfig


class XLMRobertaForQuestionAnswering(RobertaForQuestionAnswering):
    """The first and the last position of an answer."""

    config_class = XLMRobertaConfig


class XLMRobertaForPointerQuestionAnswering(RobertaForPointerQuestionAnswering):
    """The first position of an answer, and the last one given the first."""

    config_class = XLMRobertaConfig


XLM_ROBERTA = roberta_family(
    XLMRobertaConfig,
    {
        HeadKind.NONE: XLMRobertaModel,
        HeadKind.MASKED_LM: XLMRobertaForMaskedLM,
        HeadKind.CAUSAL_LM: XLMRobertaForCausalLM,
        HeadKind.SEQUENCE_CLASSIFICATION: XLMRobertaForSequenceClassification,
        HeadKind.MULTIPLE_CHOICE: XLMRobertaForMultipleChoice,
        HeadKind.TOKEN_CLASSIFICATION: XLMRobertaForTokenClassification,
        HeadKind.QUESTION_ANSWERING: XLMRobertaForQuestionAnswering,
        HeadKind.ANSWER_POINTER: XLMRobertaForPointerQuestionAnswering,
    },
)
