"""The heads of ONNX graphs: each adds its outputs and returns their shapes by name."""

from collections.abc import Callable
from typing import Any

import numpy as np

from flaxbert.config import BertConfig
from flaxbert.export.onnx_writer import ACTIVATIONS, Writer


def _pooled(write: Writer, found: dict[str, str], bert: Any, config: BertConfig, name: str | None = None) -> str:
    first = write("Gather", found["states"], write.constant(0, np.int64), axis=1)
    return write("Tanh", write.linear(first, bert["pooler"], config.hidden_size), name=name)


def _words(write: Writer, found: dict[str, str], params: Any, config: BertConfig, name: str) -> None:
    head = params["predictions"]
    x = ACTIVATIONS[config.hidden_act](write, write.linear(found["states"], head["transform"], config.hidden_size))
    x = write.norm(x, head["norm"], config)
    if config.tie_word_embeddings:
        product = write("MatMul", x, write("Transpose", found["word"], perm=(1, 0)))
        write("Add", product, write.constant(head["bias"]), name=name)
    else:
        write("Identity", write.linear(x, head["decoder"], config.hidden_size), name=name)


def _model(write, found, params, config, axes):
    write("Identity", found["states"], name="last_hidden_state")
    outputs = {"last_hidden_state": [*axes, config.hidden_size]}
    if "pooler" in params:
        _pooled(write, found, params, config, "pooler_output")
        outputs["pooler_output"] = ["B", config.hidden_size]
    return outputs


def _pretraining(write, found, params, config, axes):
    _words(write, found, params, config, "prediction_logits")
    follows = write.linear(
        _pooled(write, found, params["bert"], config), params["seq_relationship"], config.hidden_size
    )
    write("Identity", follows, name="seq_relationship_logits")
    return {"prediction_logits": [*axes, config.vocab_size], "seq_relationship_logits": ["B", 2]}


def _masked_lm(write, found, params, config, axes):
    _words(write, found, params, config, "logits")
    return {"logits": [*axes, config.vocab_size]}


def _of_pooled(layer, outputs):
    def head(write, found, params, config, axes):
        pooled = _pooled(write, found, params["bert"], config)
        write("Identity", write.linear(pooled, params[layer], config.hidden_size), name="logits")
        return {"logits": ["B", outputs(config)]}

    return head


def _multiple_choice(write, found, params, config, axes):
    scores = write.linear(_pooled(write, found, params["bert"], config), params["classifier"], config.hidden_size)
    choices = write("Slice", write("Shape", "input_ids"), write.whole(0), write.whole(2))
    write("Reshape", scores, choices, name="logits")
    return {"logits": ["B", "C"]}


def _tokens(write, found, params, config, axes):
    write("Identity", write.linear(found["states"], params["classifier"], config.hidden_size), name="logits")
    return {"logits": [*axes, config.num_labels]}


def _answers(write, found, params, config, axes):
    scores = write.linear(found["states"], params["qa_outputs"], config.hidden_size)
    for column, name in enumerate(("start_logits", "end_logits")):
        write("Gather", scores, write.constant(column, np.int64), axis=2, name=name)
    return {"start_logits": axes, "end_logits": axes}


HEADS: dict[str, Callable[..., dict[str, list[Any]]]] = {
    "BertModel": _model,
    "BertForPreTraining": _pretraining,
    "BertForMaskedLM": _masked_lm,
    "BertLMHeadModel": _masked_lm,
    "BertForNextSentencePrediction": _of_pooled("seq_relationship", lambda config: 2),
    "BertForSequenceClassification": _of_pooled("classifier", lambda config: config.num_labels),
    "BertForMultipleChoice": _multiple_choice,
    "BertForTokenClassification": _tokens,
    "BertForQuestionAnswering": _answers,
}
