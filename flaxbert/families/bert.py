"""BERT (Devlin et al., 2018): its classes, inputs and names.

    Hugging Face (PyTorch)                                 params dict (L layers stacked on a leading axis)
    bert.embeddings.word_embeddings.weight [V, D]          bert/embeddings/word/embedding        [V, D]
    bert.encoder.layer.N.attention.self.query.weight       bert/layers/attention/query/kernel    [L, D, H, K]
    bert.encoder.layer.N.attention.output.dense.weight     bert/layers/attention/output/kernel   [L, H, K, D]
    bert.encoder.layer.N.intermediate.dense.weight [F, D]  bert/layers/up/kernel                 [L, D, F]

`BertModel` has the same names without `bert`. The configuration is `flaxbert.BertConfig`.
"""

from flaxbert.answer_pointer import BertForPointerQuestionAnswering
from flaxbert.config import BertConfig
from flaxbert.families.family import (
    Architecture,
    Family,
    HeadKind,
    SpecialTokens,
    TensorName,
    TokenDecoder,
    activation_names,
    embedding_name,
    layer_norm_names,
    linear_names,
)
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

_LAYER = "encoder.layer.{layer}"

ENCODER: tuple[TensorName, ...] = (
    embedding_name("embeddings.word_embeddings", "embeddings/word", per_token=True),
    embedding_name("embeddings.position_embeddings", "embeddings/position"),
    embedding_name("embeddings.token_type_embeddings", "embeddings/token_type"),
    *layer_norm_names("embeddings.LayerNorm", "embeddings/norm"),
    *linear_names(f"{_LAYER}.attention.self.query", "layers/attention/query"),
    *linear_names(f"{_LAYER}.attention.self.key", "layers/attention/key"),
    *linear_names(f"{_LAYER}.attention.self.value", "layers/attention/value"),
    *linear_names(f"{_LAYER}.attention.output.dense", "layers/attention/output", input_axes=2),  # [H, K, D]
    embedding_name(f"{_LAYER}.attention.self.distance_embedding", "layers/attention/distance"),
    *linear_names(f"{_LAYER}.crossattention.self.query", "layers/cross_attention/query"),
    *linear_names(f"{_LAYER}.crossattention.self.key", "layers/cross_attention/key"),
    *linear_names(f"{_LAYER}.crossattention.self.value", "layers/cross_attention/value"),
    *linear_names(f"{_LAYER}.crossattention.output.dense", "layers/cross_attention/output", input_axes=2),
    *layer_norm_names(f"{_LAYER}.crossattention.output.LayerNorm", "layers/cross_attention_norm"),
    *linear_names(f"{_LAYER}.intermediate.dense", "layers/up"),
    *linear_names(f"{_LAYER}.output.dense", "layers/down"),
    *layer_norm_names(f"{_LAYER}.attention.output.LayerNorm", "layers/attention_norm"),
    *layer_norm_names(f"{_LAYER}.output.LayerNorm", "layers/output_norm"),
    *activation_names(f"{_LAYER}.intermediate.intermediate_act_fn", "layers/activation"),
)
POOLER: tuple[TensorName, ...] = linear_names("pooler.dense", "pooler")

# The head of `answer_pointer.py`, under names of this library.
ANSWER_POINTER: tuple[TensorName, ...] = (
    TensorName("pointer.first_input", ("pointer", "first_input")),
    *(
        row
        for name in ("state", "context", "score", "mix")
        for row in linear_names(f"pointer.{name}", f"pointer/{name}")
    ),
    *linear_names("pointer.cell.input", "pointer/cell/input"),
    *linear_names("pointer.cell.state", "pointer/cell/state"),
)

# Tensors of files that hold no parameter.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

_HEADS: tuple[TensorName, ...] = (
    *layer_norm_names("cls.predictions.transform.LayerNorm", "predictions/norm"),
    TensorName("cls.predictions.bias", ("predictions", "bias"), per_token=True),
    *linear_names("cls.predictions.transform.dense", "predictions/transform"),
    *linear_names("cls.predictions.decoder", "predictions/decoder", per_token=True),
    *activation_names("cls.predictions.transform.transform_act_fn", "predictions/activation"),
    *linear_names("cls.seq_relationship", "seq_relationship"),
    *linear_names("classifier", "classifier"),
    *linear_names("qa_outputs", "qa_outputs"),
    *ANSWER_POINTER,
)

# Keys of config.json without an effect on this library's mathematics.
KEPT_CONFIG_KEYS = frozenset(
    [
        "gradient_checkpointing",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "sep_token_id",
        "cls_token_id",
        "mask_token_id",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "directionality",
        "finetuning_task",
        "task_specific_params",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ]
)

BERT = Family(
    model_type=BertConfig.model_type,
    config_class=BertConfig,
    kept_config_keys=KEPT_CONFIG_KEYS,
    prefix=PreTrainedModel.base_model_prefix,
    encoder=ENCODER,
    pooler=POOLER,
    heads=_HEADS,
    buffers=BUFFERS,
    decoder=TokenDecoder(
        embeddings="bert.embeddings.word_embeddings.weight",
        weight="cls.predictions.decoder.weight",
        bias="cls.predictions.bias",
        untied_bias="cls.predictions.decoder.bias",
    ),
    label_weights=("classifier.weight",),
    # A classifier with a pooler may be one of sequences or of choices, which have the same names: sequences are more
    # frequent.
    architectures=(
        Architecture(BertModel, HeadKind.NONE),
        Architecture(BertForPreTraining, HeadKind.PRETRAINING, ("cls.predictions.", "cls.seq_relationship.weight")),
        Architecture(BertForMaskedLM, HeadKind.MASKED_LM, ("cls.predictions.",)),
        Architecture(BertLMHeadModel, HeadKind.CAUSAL_LM),
        Architecture(BertForNextSentencePrediction, HeadKind.NEXT_SENTENCE, ("cls.seq_relationship.weight",)),
        Architecture(BertForQuestionAnswering, HeadKind.QUESTION_ANSWERING, ("qa_outputs.weight",)),
        Architecture(BertForPointerQuestionAnswering, HeadKind.ANSWER_POINTER, ("pointer.score.weight",)),
        Architecture(
            BertForSequenceClassification,
            HeadKind.SEQUENCE_CLASSIFICATION,
            ("classifier.weight", "bert.pooler.dense.weight"),
        ),
        Architecture(BertForMultipleChoice, HeadKind.MULTIPLE_CHOICE),
        Architecture(BertForTokenClassification, HeadKind.TOKEN_CLASSIFICATION, ("classifier.weight",)),
    ),
    special_tokens=SpecialTokens(pad="[PAD]", unknown="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
)
