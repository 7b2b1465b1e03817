"""Every class against PyTorch's `transformers` in float32: outputs, loss, and the gradient of every parameter."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import flaxbert
from flaxbert import losses
from flaxbert.families import BERT
from flaxbert.weights import names

B, C, T = 4, 3, 11
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # of the largest entry of a tensor's gradient

# -- heads: labels under PyTorch's names, and our loss of the same labels --------------------------------------


def with_ignored(labels, rng):
    return np.where(rng.random(labels.shape) < 0.4, -100, labels)


def word_labels(rng, config):
    return {"labels": with_ignored(rng.integers(0, config.vocab_size, (B, T)), rng)}


def pair_labels(rng, config):
    return {"labels": np.array([0, 1, -100, 1])}


def class_labels(rng, config):
    if config.problem_type == "multi_label_classification":
        return {"labels": rng.integers(0, 2, (B, config.num_labels)).astype(np.float32)}
    if config.num_labels == 1 or config.problem_type == "regression":
        shape = (B,) if config.num_labels == 1 else (B, config.num_labels)
        return {"labels": rng.standard_normal(shape, np.float32)}
    return {"labels": rng.integers(0, config.num_labels, B)}


def spans(rng, config):
    # Negative positions mean [CLS]; those at or beyond the end do not count.
    return {"start_positions": np.array([-3, 4, T, 2]), "end_positions": np.array([T - 1, T + 5, 0, -1])}


def projection(rng, config):
    # BertModel has no loss: a fixed random projection of both outputs stands in for one.
    return {"states": rng.standard_normal((B, T, config.hidden_size), np.float32) / (B * T)}


@dataclasses.dataclass
class Head:
    labels: Callable[..., dict[str, np.ndarray]]
    loss: Callable[..., Any]
    zero_gradient: tuple[str, ...] = ()  # ends of the names whose exact gradient is 0


HEADS = {
    "BertModel": Head(
        projection, lambda out, y, c: (out.last_hidden_state * y["states"]).sum() + out.pooler_output.mean()
    ),
    "BertForPreTraining": Head(
        lambda rng, c: word_labels(rng, c) | {"next_sentence_label": pair_labels(rng, c)["labels"]},
        lambda out, y, c: (
            losses.pretraining(
                out.prediction_logits, out.seq_relationship_logits, y["labels"], y["next_sentence_label"]
            ).mean
        ),
    ),
    "BertForMaskedLM": Head(word_labels, lambda out, y, c: losses.masked_lm(out.logits, y["labels"]).mean),
    "BertLMHeadModel": Head(word_labels, lambda out, y, c: losses.causal_lm(out.logits, y["labels"]).mean),
    "BertForNextSentencePrediction": Head(
        pair_labels, lambda out, y, c: losses.next_sentence(out.logits, y["labels"]).mean
    ),
    "BertForSequenceClassification": Head(
        class_labels,
        lambda out, y, c: losses.sequence_classification(out.logits, y["labels"], problem_type=c.problem_type).mean,
    ),
    # A constant added to every choice changes no probability.
    "BertForMultipleChoice": Head(
        lambda rng, c: {"labels": rng.integers(0, C, B)},
        lambda out, y, c: losses.multiple_choice(out.logits, y["labels"]).mean,
        ("classifier.bias",),
    ),
    "BertForTokenClassification": Head(
        lambda rng, c: {"labels": with_ignored(rng.integers(0, c.num_labels, (B, T)), rng)},
        lambda out, y, c: losses.token_classification(out.logits, y["labels"]).mean,
    ),
    # A constant added to every position changes no probability; the last norm's bias is such a constant.
    "BertForQuestionAnswering": Head(
        spans,
        lambda out, y, c: (
            losses.question_answering(out.start_logits, out.end_logits, y["start_positions"], y["end_positions"]).mean
        ),
        ("qa_outputs.bias", "layer.{last}.output.LayerNorm.bias"),
    ),
}


# -- random models and inputs ----------------------------------------------------------------------------------


def random_config(seed: int, **fixed) -> transformers.BertConfig:
    """A small config of odd sizes; over 19 seeds in a row every activation comes up."""
    rng = np.random.default_rng(seed)
    heads, head_size = int(rng.choice([1, 3, 5])), int(rng.choice([5, 6, 7]))
    values = {
        "vocab_size": 99,
        "max_position_embeddings": 37,
        "hidden_size": heads * head_size,
        "num_attention_heads": heads,
        "num_hidden_layers": int(rng.integers(1, 4)),
        "intermediate_size": int(rng.choice([23, 41, 67])),
        "type_vocab_size": int(rng.choice([2, 3])),
        "hidden_act": sorted(flaxbert.functional.ACTIVATIONS)[seed % len(flaxbert.functional.ACTIVATIONS)],
        "classifier_dropout": [None, 0.3][seed % 2],
        "layer_norm_eps": [1e-12, 1e-5][seed // 2 % 2],
        "pad_token_id": [0, None, 17][seed % 3],
        "attn_implementation": "eager",
    }
    return transformers.BertConfig(**values | fixed)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights of a trained model's scale; nothing stays 0 or 1: not biases, nor norms, nor the pad row."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("LayerNorm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            elif "embeddings" in name:
                parameter.copy_(2 * noise / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)


def random_inputs(variant: str, config: transformers.BertConfig, rng, choices: bool) -> dict[str, np.ndarray]:
    shape = (B, C, T) if choices else (B, T)
    ids = rng.integers(0, config.vocab_size, shape)
    ids[..., -3:] = 17 if config.pad_token_id is None else config.pad_token_id
    types = rng.integers(0, config.type_vocab_size, shape)
    padding = np.arange(T) < rng.integers(3, T + 1, (*shape[:-1], 1))
    padding[2] = False  # a row in which nothing may be attended to
    if variant == "embeds":
        return {"inputs_embeds": rng.standard_normal((*shape, config.hidden_size), np.float32)}
    if variant == "padded":
        return {"input_ids": ids, "attention_mask": padding.astype(np.int64), "token_type_ids": types}
    positions = rng.integers(0, config.max_position_embeddings, shape)
    rows = rng.random((B, T, T)) < 0.6
    rows[1, 5] = False
    mask = padding if choices else rows  # the reference cannot flatten a mask of rows over choices
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "position_ids": positions}


# -- the two sides -----------------------------------------------------------------------------------------------


def run_torch(name, model, inputs, labels):
    """Outputs, loss, and gradients by parameter name."""
    arrays = {key: torch.from_numpy(value) for key, value in (inputs | labels).items()}
    mask = arrays.get("attention_mask")
    if mask is not None and not name.endswith("MultipleChoice") and mask.ndim == 3:
        # transformers 5 takes rows of a mask only as the [B, 1, T, T] term to add to the scores.
        lowest = torch.finfo(torch.float32).min
        arrays["attention_mask"] = torch.where(mask, 0.0, lowest)[:, None]
    states = arrays.pop("states", None)
    if "inputs_embeds" in arrays:
        arrays["inputs_embeds"].requires_grad_()
    out = model(**arrays, output_hidden_states=True, output_attentions=True)
    loss = out.loss if states is None else (out.last_hidden_state * states).sum() + out.pooler_output.mean()
    loss.backward()
    gradients = {
        key: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for key, p in model.named_parameters()
    }
    if "inputs_embeds" in arrays:
        gradients["inputs_embeds"] = arrays["inputs_embeds"].grad.numpy()
    return out, float(loss.detach()), gradients


def run_ours(name, model, params, inputs, labels):
    embeds = inputs.get("inputs_embeds")

    def loss_of(params, embeds):
        given = inputs if embeds is None else inputs | {"inputs_embeds": embeds}
        return HEADS[name].loss(model.apply({"params": params}, **given), labels, model.config)

    # The loss is taken as training takes it: asked for states, a classifier would compute positions it needs not.
    @jax.jit
    def both(params, embeds):
        arguments = (0,) if embeds is None else (0, 1)
        out = model.apply({"params": params}, **inputs, output_hidden_states=True, output_attentions=True)
        return jax.value_and_grad(loss_of, argnums=arguments)(params, embeds), out

    (loss, gradients), out = both(params, embeds)
    assert abs(HEADS[name].loss(out, labels, model.config) - loss) < 1e-5
    found = foreign(name, gradients[0])
    if embeds is not None:
        found["inputs_embeds"] = np.asarray(gradients[1])
    return out, float(loss), found


def foreign(name: str, tree) -> dict[str, np.ndarray]:
    """A tree in the shape of the parameters, as tensors under the reference's names."""
    tree, tensors = jax.device_get(tree), {}
    for entry in names.name_mappings(BERT, tree):
        leaf = functools.reduce(operator.getitem, entry.path, tree)
        leaf = leaf if entry.layer is None else leaf[entry.layer]
        tensors[entry.name.removeprefix("bert.") if name == "BertModel" else entry.name] = entry.to_file_layout(leaf)
    return tensors


def differences(ours: Any, reference: Any) -> dict[str, float]:
    """The largest difference of each output, hidden state and attention."""
    pairs = {}
    decoders_only = ("cross_attentions", "cache")
    assert all(getattr(ours, field, None) is None for field in decoders_only)
    for field in (f.name for f in dataclasses.fields(ours) if f.name not in decoders_only):
        values, wanted = getattr(ours, field), getattr(reference, field)
        if isinstance(values, tuple):
            assert len(values) == len(wanted), field
            pairs |= {f"{field}[{i}]": pair for i, pair in enumerate(zip(values, wanted, strict=True))}
        else:
            pairs[field] = (values, wanted)
    found = {}
    for field, (value, wanted) in pairs.items():
        assert value.shape == tuple(wanted.shape) and value.dtype == jnp.float32, field
        found[field] = float(np.abs(np.asarray(value) - wanted.detach().numpy()).max())
    return found


def gradient_differences(name, ours, reference, layers) -> dict[str, float]:
    """The largest difference of each gradient, as a part of what is allowed."""
    zero = ("attention.self.key.bias", *(end.format(last=layers - 1) for end in HEADS[name].zero_gradient))
    assert ours.keys() == reference.keys()
    found = {}
    for key, wanted in reference.items():
        # Where the exact gradient is 0 (a softmax does not see a constant) both sides hold sums of cancelled
        # terms: rounding, of no scale of its own.
        allowed = 1e-6 if key.endswith(zero) else GRADIENT_TOLERANCE * np.abs(wanted).max()
        difference = np.abs(ours[key] - wanted).max()
        found[key] = float(difference / allowed) if difference else 0.0
    return found


def compare(name, seed, variant, fixed, folder):
    """Worst differences of outputs, of the loss, and of gradients (as a part of what is allowed)."""
    config = random_config(seed, **fixed)
    reference = getattr(transformers, name)(config).eval()
    randomise(reference, seed)
    reference.save_pretrained(folder)
    model, params = getattr(flaxbert, name).from_pretrained(folder)
    rng = np.random.default_rng(seed)
    inputs = random_inputs(variant, config, rng, model.takes_choices)
    labels = HEADS[name].labels(rng, config)
    # The model writes a problem type into its config with its first loss: run ours on the file's.
    out, loss, gradients = run_ours(name, model, params, inputs, labels)
    wanted_out, wanted_loss, wanted_gradients = run_torch(name, reference, inputs, labels)
    if not config.tie_word_embeddings:
        del wanted_gradients["cls.predictions.bias"]  # the reference keeps one that its untied decoder never reads
    # Nothing may pass for being 0 on both sides.
    assert np.isfinite(wanted_loss) and abs(wanted_loss) > 1e-2
    return (
        differences(out, wanted_out),
        abs(loss - wanted_loss),
        gradient_differences(name, gradients, wanted_gradients, config.num_hidden_layers),
    )


EXTRA = {
    "BertForSequenceClassification": {
        "padded": {"num_labels": 3},
        "rows": {"num_labels": 5, "problem_type": "multi_label_classification"},
        "embeds": {"num_labels": 1},
    },
    "BertForTokenClassification": {v: {"num_labels": 7} for v in ("padded", "rows", "embeds")},
    "BertLMHeadModel": {v: {"is_decoder": True} for v in ("padded", "rows", "embeds")},
}
CASES = [
    *(
        (name, variant, EXTRA.get(name, {}).get(variant, {}))
        for name in HEADS
        for variant in ("padded", "rows", "embeds")
    ),
    ("BertLMHeadModel", "padded", {"is_decoder": False}),
    ("BertModel", "padded", {"is_decoder": True}),
    ("BertForMaskedLM", "padded", {"tie_word_embeddings": False}),
    ("BertForSequenceClassification", "padded", {"num_labels": 3, "problem_type": "regression"}),
    ("BertForSequenceClassification", "padded", {"num_labels": 4, "problem_type": "single_label_classification"}),
    ("BertForSequenceClassification", "padded", {"num_labels": 1, "problem_type": "multi_label_classification"}),
]


@pytest.mark.parametrize(
    ("seed", "name", "variant", "fixed"),
    [
        pytest.param(seed, *case, id="-".join([case[0], case[1], *(f"{k}={v}" for k, v in case[2].items())]))
        for seed, case in enumerate(CASES)
    ],
)
def test_outputs_loss_and_gradients_equal_pytorch(seed, name, variant, fixed, tmp_path):
    outputs, loss, gradients = compare(name, seed, variant, fixed, tmp_path)
    assert {key: value for key, value in outputs.items() if value > OUTPUT_TOLERANCE} == {}
    assert loss <= OUTPUT_TOLERANCE
    assert {key: value for key, value in gradients.items() if value > 1} == {}


def test_cases_cover_every_activation_and_setting():
    configs = [random_config(seed, **case[2]) for seed, case in enumerate(CASES)]
    assert {c.hidden_act for c in configs} == set(flaxbert.functional.ACTIVATIONS)
    assert {c.num_attention_heads for c in configs} == {1, 3, 5}
    assert {c.num_hidden_layers for c in configs} == {1, 2, 3}
    assert {(c.layer_norm_eps, c.type_vocab_size) for c in configs} == {(e, n) for e in (1e-12, 1e-5) for n in (2, 3)}
    assert {c.pad_token_id for c in configs} == {0, None, 17}


def test_base_size_outputs_equal_pytorch(tmp_path):
    config = transformers.BertConfig(attn_implementation="eager")
    reference = transformers.BertForPreTraining(config).eval()
    randomise(reference, 0)
    reference.save_pretrained(tmp_path)
    model, params = flaxbert.BertForPreTraining.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    ids, types = rng.integers(0, config.vocab_size, (2, 64)), rng.integers(0, 2, (2, 64))
    mask = np.stack([np.ones(64, np.int64), np.arange(64) < 41])
    out = jax.jit(model.apply)({"params": params}, ids, attention_mask=mask, token_type_ids=types)
    with torch.no_grad():
        wanted = reference(*map(torch.from_numpy, (ids, mask, types)))
    for field in ("prediction_logits", "seq_relationship_logits"):
        np.testing.assert_allclose(getattr(out, field), getattr(wanted, field).numpy(), rtol=0, atol=5e-5)
