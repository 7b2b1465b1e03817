"""CamemBERT (Martin et al., 2020): RoBERTa of French, with a SentencePiece vocabulary."""

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
class CamembertConfig(RobertaConfig):
    """RoBERTa's configuration under another name; defaults are Hugging Face's."""

    model_type: ClassVar[str] = "camembert"
    vocab_size: int = 30522


class CamembertModel(RobertaModel):
    """The encoder."""

    config_class = CamembertConfig


class CamembertForMaskedLM(RobertaForMaskedLM):
    """Tokens at masked positions."""

    config_class = CamembertConfig


class CamembertForCausalLM(RobertaForCausalLM):
    """The next token."""

    config_class = CamembertConfig


class CamembertForSequenceClassification(RobertaForSequenceClassification):
    """One label, several labels or a number for a whole sequence."""

    config_class = CamembertConfig


class CamembertForMultipleChoice(RobertaForMultipleChoice):
    """One of C continuations."""

    config_class = CamembertConfig


class CamembertForTokenClassification(RobertaForTokenClassification):
    """A label for every position."""

    config_class = CamembertConfig


class CamembertForQuestionAnswering(RobertaForQuestionAnswering):
    """The first and the last position of an answer."""

    config_class = CamembertConfig


class CamembertForPointerQuestionAnswering(RobertaForPointerQuestionAnswering):
    """The first position of an answer, and the last one given the first."""

    config_class = CamembertConfig


CAMEMBERT = roberta_family(
    CamembertConfig,
    {
        HeadKind.NONE: CamembertModel,
        HeadKind.MASKED_LM: CamembertForMaskedLM,
        HeadKind.CAUSAL_LM: CamembertForCausalLM,
        HeadKind.SEQUENCE_CLASSIFICATION: CamembertForSequenceClassification,
        HeadKind.MULTIPLE_CHOICE: CamembertForMultipleChoice,
        HeadKind.TOKEN_CLASSIFICATION: CamembertForTokenClassification,
        HeadKind.QUESTION_ANSWERING: CamembertForQuestionAnswering,
        HeadKind.ANSWER_POINTER: CamembertForPointerQuestionAnswering,
    },
)
