"""A class of any family against PyTorch's `transformers` in float32: outputs, loss, gradients of all parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

import flaxbert
from flaxbert import losses
from flaxbert.families import HeadKind, architecture_of, family_of
from flaxbert.models import PreTrainedModel
from flaxbert.weights.names import NameMapping, leaf_at, name_mappings

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
    # A base model has no loss: a fixed random projection of its outputs stands in for one.
    # Its mean is not 0, so that the sum is not either by chance.
    return {"states": (rng.standard_normal((B, T, config.hidden_size), np.float32) + 0.5) / (B * T)}


def projected(out, states):
    total = (out.last_hidden_state * states).sum()
    pooled = out.get("pooler_output") if isinstance(out, dict) else out.pooler_output
    return total if pooled is None else total + pooled.mean()


@dataclasses.dataclass
class Head:
    labels: Callable[..., dict[str, np.ndarray]]
    loss: Callable[..., Any]
    # Ends of the paths of parameters whose exact gradient is 0, those of layers in the last one.
    zero_gradient: tuple[tuple[str, ...], ...] = ()


HEADS = {
    HeadKind.NONE: Head(projection, lambda out, y, c: projected(out, y["states"])),
    HeadKind.PRETRAINING: Head(
        lambda rng, c: word_labels(rng, c) | {"next_sentence_label": pair_labels(rng, c)["labels"]},
        lambda out, y, c: (
            losses.pretraining(
                out.prediction_logits, out.seq_relationship_logits, y["labels"], y["next_sentence_label"]
            ).mean
        ),
    ),
    HeadKind.REPLACED_TOKENS: Head(
        lambda rng, c: {"labels": rng.integers(0, 2, (B, T))},
        lambda out, y, c: losses.replaced_tokens(out.logits, y["labels"]).mean,
    ),
    HeadKind.MASKED_LM: Head(word_labels, lambda out, y, c: losses.masked_lm(out.logits, y["labels"]).mean),
    HeadKind.CAUSAL_LM: Head(word_labels, lambda out, y, c: losses.causal_lm(out.logits, y["labels"]).mean),
    HeadKind.NEXT_SENTENCE: Head(pair_labels, lambda out, y, c: losses.next_sentence(out.logits, y["labels"]).mean),
    HeadKind.SEQUENCE_CLASSIFICATION: Head(
        class_labels,
        lambda out, y, c: losses.sequence_classification(out.logits, y["labels"], problem_type=c.problem_type).mean,
    ),
    # A constant added to every choice changes no probability.
    HeadKind.MULTIPLE_CHOICE: Head(
        lambda rng, c: {"labels": rng.integers(0, C, B)},
        lambda out, y, c: losses.multiple_choice(out.logits, y["labels"]).mean,
        (("classifier", "bias"),),
    ),
    HeadKind.TOKEN_CLASSIFICATION: Head(
        lambda rng, c: {"labels": with_ignored(rng.integers(0, c.num_labels, (B, T)), rng)},
        lambda out, y, c: losses.token_classification(out.logits, y["labels"]).mean,
    ),
    # A constant added to every position changes no probability; the last norm's bias is such a constant.
    HeadKind.QUESTION_ANSWERING: Head(
        spans,
        lambda out, y, c: (
            losses.question_answering(out.start_logits, out.end_logits, y["start_positions"], y["end_positions"]).mean
        ),
        (("qa_outputs", "bias"), ("output_norm", "bias")),
    ),
}


def head_of(model: PreTrainedModel) -> Head:
    return HEADS[architecture_of(model).head]


# -- random models and inputs ----------------------------------------------------------------------------------


def random_config(name: str, seed: int, **fixed) -> transformers.PreTrainedConfig:
    """A small config of odd sizes for a class; over 19 seeds in a row every activation comes up."""
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
    family = family_of(flaxbert.ARCHITECTURES[name])
    values |= {"sinusoidal_pos_embds": seed % 2 == 0} if family.model_type == "distilbert" else {}
    values |= {"embedding_size": int(rng.choice([9, heads * head_size]))} if family.model_type == "electra" else {}
    fixed_by_family = family.config_class.fixed_fields
    keys = {family.config_keys.get(key, key): value for key, value in values.items() if key not in fixed_by_family}
    return getattr(transformers, name).config_class(**keys | fixed)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights of a trained model's scale; nothing stays 0 or 1: not biases, nor norms, nor the pad row."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.lower().endswith(("layernorm.weight", "layer_norm.weight")):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            elif "embeddings" in name:
                parameter.copy_(2 * noise / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)


def random_inputs(variant: str, model: PreTrainedModel, rng) -> dict[str, np.ndarray]:
    config, choices = model.config, model.takes_choices
    shape = (B, C, T) if choices else (B, T)
    ids = rng.integers(0, config.vocab_size, shape)
    ids[..., -3:] = 17 if config.pad_token_id is None else config.pad_token_id
    types = {"token_type_ids": rng.integers(0, config.type_vocab_size, shape)} if config.type_vocab_size else {}
    padding = np.arange(T) < rng.integers(3, T + 1, (*shape[:-1], 1))
    padding[2] = False  # a row in which nothing may be attended to
    if variant == "embeds":
        return {"inputs_embeds": rng.standard_normal((*shape, config.embedding_width), np.float32)}
    if variant == "padded":
        return {"input_ids": ids, "attention_mask": padding.astype(np.int64), **types}
    positions = rng.integers(0, config.max_position_embeddings, shape)
    rows = rng.random((B, T, T)) < 0.6
    rows[1, 5] = False
    mask = padding if choices else rows  # the reference cannot flatten a mask of rows over choices
    if choices and not types:  # nor DistilBERT's positions
        return {"input_ids": ids, "attention_mask": mask}
    return {"input_ids": ids, "attention_mask": mask, **types, "position_ids": positions}


# -- the two sides -----------------------------------------------------------------------------------------------


def run_torch(model, inputs, labels):
    """Outputs, loss, and gradients by parameter name."""
    arrays = {key: torch.from_numpy(value) for key, value in (inputs | labels).items()}
    mask = arrays.get("attention_mask")
    if mask is not None and mask.ndim == 3 and mask.shape[1] == mask.shape[2]:
        # transformers 5 takes rows of a mask only as the [B, 1, T, T] term to add to the scores.
        lowest = torch.finfo(torch.float32).min
        arrays["attention_mask"] = torch.where(mask, 0.0, lowest)[:, None]
    states = arrays.pop("states", None)
    if "inputs_embeds" in arrays:
        arrays["inputs_embeds"].requires_grad_()
    out = model(**arrays, output_hidden_states=True, output_attentions=True)
    loss = out.loss if states is None else projected(out, states)
    loss.backward()
    gradients = {
        key: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for key, p in model.named_parameters()
    }
    if "inputs_embeds" in arrays:
        gradients["inputs_embeds"] = arrays["inputs_embeds"].grad.numpy()
    return out, float(loss.detach()), gradients


def run_ours(model, params, inputs, labels):
    embeds = inputs.get("inputs_embeds")

    def loss_of(params, embeds):
        given = inputs if embeds is None else inputs | {"inputs_embeds": embeds}
        return head_of(model).loss(model.apply({"params": params}, **given), labels, model.config)

    # The loss is taken as training takes it: asked for states, a classifier would compute positions it needs not.
    @jax.jit
    def both(params, embeds):
        arguments = (0,) if embeds is None else (0, 1)
        out = model.apply({"params": params}, **inputs, output_hidden_states=True, output_attentions=True)
        return jax.value_and_grad(loss_of, argnums=arguments)(params, embeds), out

    (loss, gradients), out = both(params, embeds)
    assert abs(head_of(model).loss(out, labels, model.config) - loss) < 1e-5
    found = foreign(model, gradients[0])
    if embeds is not None:
        found["inputs_embeds"] = np.asarray(gradients[1])
    return out, float(loss), found


def mappings_of(model: PreTrainedModel, tree) -> dict[str, NameMapping]:
    """The mapping of every parameter by the reference's name."""
    family, base = family_of(model), architecture_of(model).is_base_model
    return {
        mapping.name.removeprefix(family.prefixed("")) if base else mapping.name: mapping
        for mapping in name_mappings(family, tree)
    }


def foreign(model: PreTrainedModel, tree) -> dict[str, np.ndarray]:
    """A tree in the shape of the parameters, as tensors under the reference's names."""
    tree, tensors = jax.device_get(tree), {}
    for name, mapping in mappings_of(model, tree).items():
        leaf = leaf_at(tree, mapping.path)
        tensors[name] = mapping.to_file_layout(leaf if mapping.layer is None else leaf[mapping.layer])
    return tensors


def differences(ours: Any, reference: Any) -> dict[str, float]:
    """The largest difference of each output, hidden state and attention."""
    pairs = {}
    optional = {"cross_attentions", "cache", "lengths"}  # of decoders, and of models that drop tokens
    optional |= set() if "pooler_output" in reference else {"pooler_output"}
    assert all(getattr(ours, field, None) is None for field in optional)
    for field in (f.name for f in dataclasses.fields(ours) if f.name not in optional):
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


def gradient_differences(model: PreTrainedModel, ours, reference) -> dict[str, float]:
    """The largest difference of each gradient, as a part of what is allowed."""
    assert ours.keys() == reference.keys()
    mappings, found = mappings_of(model, model.parameter_shapes()), {}
    last, zero = model.config.num_hidden_layers - 1, head_of(model).zero_gradient
    for key, wanted in reference.items():
        path, layer = (mappings[key].path, mappings[key].layer) if key in mappings else ((), None)
        is_zero = path[-2:] == ("key", "bias") or (layer in (None, last) and path[-2:] in zero)
        # Where the exact gradient is 0 (a softmax does not see a constant) both sides hold sums of cancelled
        # terms: rounding, of no scale of its own.
        allowed = 1e-6 if is_zero else GRADIENT_TOLERANCE * np.abs(wanted).max()
        difference = np.abs(ours[key] - wanted).max()
        found[key] = float(difference / allowed) if difference else 0.0
    return found


def saved(name, folder, seed=1, **fixed):
    """Write a random model of transformers' class of this name."""
    model = getattr(transformers, name)(random_config(name, seed, **fixed)).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    return model


def assert_round_trip(name, folder, caplog, **fixed):
    """Load a random model of a class and save it: every bit is the same, and transformers reads it without a remark."""
    saved(name, folder / "theirs", **fixed)
    model, params = flaxbert.from_pretrained(folder / "theirs")
    flaxbert.save_pretrained(folder / "ours", model, params)
    assert caplog.text == ""
    before, after = (load_file(folder / side / "model.safetensors") for side in ("theirs", "ours"))
    decoder = family_of(model).decoder
    if decoder.bias != decoder.untied_bias and decoder.untied_bias in before:
        before[decoder.bias] = before[decoder.untied_bias]  # never read: ours repeats the one that is
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.tobytes() == after[key].tobytes() and tensor.dtype == after[key].dtype, key
    _, report = getattr(transformers, name).from_pretrained(folder / "ours", output_loading_info=True)
    assert {kind: list(found) for kind, found in report.items() if found} == {}


def assert_parity(name, seed, variant, fixed, folder):
    """Compare outputs, loss and gradients of a random model of a class, in a folder of the reference."""
    reference = saved(name, folder, seed, **fixed)
    config = reference.config
    model, params = getattr(flaxbert, name).from_pretrained(folder)
    rng = np.random.default_rng(seed)
    inputs, labels = random_inputs(variant, model, rng), head_of(model).labels(rng, model.config)
    # The model writes a problem type into its config with its first loss: run ours on the file's.
    out, loss, gradients = run_ours(model, params, inputs, labels)
    wanted_out, wanted_loss, wanted_gradients = run_torch(reference, inputs, labels)
    decoder = family_of(model).decoder
    if not config.tie_word_embeddings and decoder.bias != decoder.untied_bias:
        wanted_gradients.pop(decoder.bias, None)  # the reference keeps one that its untied decoder never reads
    # Nothing may pass for being 0 on both sides.
    assert np.isfinite(wanted_loss) and abs(wanted_loss) > 1e-2
    assert {key: v for key, v in differences(out, wanted_out).items() if v > OUTPUT_TOLERANCE} == {}
    assert abs(loss - wanted_loss) <= OUTPUT_TOLERANCE
    assert {key: v for key, v in gradient_differences(model, gradients, wanted_gradients).items() if v > 1} == {}
