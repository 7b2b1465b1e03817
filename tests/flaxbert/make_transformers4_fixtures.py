"""Make tests/flaxbert/fixtures/transformers4: small models with what transformers 5 removed, and their outputs.

These are relative positions, head masks and pruned heads; decoders with a cache and with cross-attention are added to
them. Every folder is one that `save_pretrained` wrote, with a file .npz for each run: inputs, outputs, and gradients of
the sum of all `cotangent.NAME` times the output NAME. They are computed in float64 from the float32 weights.

Each version runs in an environment of its own with Python 3.11, torch 2.13.0 and safetensors, and makes its own part:

    pip install torch==2.13.0 transformers==4.57.6 && python tests/flaxbert/make_transformers4_fixtures.py
    pip install torch==2.13.0 transformers==4.40.2 'numpy<2' && python tests/flaxbert/make_transformers4_fixtures.py

With `--check` a version recomputes the runs of both and prints the largest difference from the stored values.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).with_name("fixtures") / "transformers4"
SIZES = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "attn_implementation": "eager",
}
DECODER = {"is_decoder": True}
CROSS = {"is_decoder": True, "add_cross_attention": True}
ROWS, LENGTH, SOURCE_LENGTH = 2, 6, 5

# Folder: version that writes it, class, changes of the configuration, runs.
MODELS = {
    "encoder_relative_key": ("4.57.6", "BertModel", {"position_embedding_type": "relative_key"}, ("plain",)),
    "encoder_relative_key_query": (
        "4.57.6",
        "BertModel",
        {"position_embedding_type": "relative_key_query"},
        ("plain",),
    ),
    "decoder_relative_key": (
        "4.57.6",
        "BertLMHeadModel",
        DECODER | {"position_embedding_type": "relative_key"},
        ("plain", "cached"),
    ),
    "decoder_relative_key_query": (
        "4.57.6",
        "BertLMHeadModel",
        DECODER | {"position_embedding_type": "relative_key_query"},
        ("plain", "cached"),
    ),
    "encoder_chunked": ("4.57.6", "BertModel", {"chunk_size_feed_forward": 3}, ("head_mask", "head_mask_per_layer")),
    "decoder_cross_attention": ("4.57.6", "BertLMHeadModel", CROSS, ("plain", "cached", "head_mask_per_layer")),
    "decoder_cross_attention_relative_key_query": (
        "4.57.6",
        "BertLMHeadModel",
        CROSS | {"position_embedding_type": "relative_key_query"},
        ("plain", "cached"),
    ),
    "roberta_relative_key_query": (
        "4.57.6",
        "RobertaForMaskedLM",
        {"position_embedding_type": "relative_key_query", "pad_token_id": 1},
        ("plain",),
    ),
    "classifier": ("4.40.2", "BertForSequenceClassification", {"num_hidden_layers": 3, "num_labels": 3}, ("plain",)),
    "roberta_classifier": (
        "4.40.2",
        "RobertaForSequenceClassification",
        {"num_hidden_layers": 3, "num_labels": 3, "pad_token_id": 1},
        ("plain",),
    ),
    "decoder_cross_attention_relative_key": (
        "4.40.2",
        "BertLMHeadModel",
        CROSS | {"num_hidden_layers": 3, "position_embedding_type": "relative_key"},
        ("plain",),
    ),
}

# These are pruned twice; the result is written to NAME_pruned. The second time, head 1 of layer 0 is gone already, and
# the others of that layer have moved.
PRUNED = {
    "classifier": ("plain",),
    "roberta_classifier": ("plain",),
    "decoder_cross_attention_relative_key": ("plain", "cached"),
}
PRUNING = ({0: [1], 2: [0, 3]}, {0: [1, 2], 1: [3]})


def draw_inputs(model, run, generator):
    """Draw the arguments of a call; the last two tokens of the second row are padding."""
    config = model.config
    mask = np.ones((ROWS, LENGTH), np.int64)
    mask[1, -2:] = 0
    ids = generator.integers(2, config.vocab_size, (ROWS, LENGTH))
    inputs = {"input_ids": np.where(mask == 1, ids, config.pad_token_id), "attention_mask": mask}
    if config.model_type == "bert":
        inputs["token_type_ids"] = generator.integers(0, 2, (ROWS, LENGTH))
    if config.add_cross_attention:
        source_mask = np.ones((ROWS, SOURCE_LENGTH), np.int64)
        source_mask[0, 3:] = 0
        inputs["encoder_attention_mask"] = source_mask
        source = generator.normal(size=(ROWS, SOURCE_LENGTH, config.hidden_size))
        inputs["encoder_hidden_states"] = source.astype(np.float32)
    heads = (config.num_attention_heads,)
    if run == "head_mask":
        inputs["head_mask"] = generator.uniform(0, 1, heads).astype(np.float32)
    if run == "head_mask_per_layer":
        inputs["head_mask"] = generator.uniform(0, 1, (config.num_hidden_layers, *heads)).astype(np.float32)
    return inputs


def as_tensors(inputs):
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    return {name: t.double().requires_grad_() if t.is_floating_point() else t for name, t in tensors.items()}


def run_once(model, inputs, generator):
    """Return outputs, cotangents, and the gradients of parameters and of inputs that are no integers."""
    model.zero_grad()
    tensors = as_tensors(inputs)
    # With a cache, relative positions of transformers 4 are right for one query a call only.
    cache = {"use_cache": False} if model.config.is_decoder else {}
    out = model(**tensors, **cache, output_attentions=True, output_hidden_states=True)
    values, loss = {}, 0
    for name in ("last_hidden_state", "pooler_output", "logits"):
        if out.get(name) is not None:
            cotangent = generator.normal(size=out[name].shape).astype(np.float32)
            values |= {f"output.{name}": out[name], f"cotangent.{name}": cotangent}
            loss = loss + (out[name] * torch.from_numpy(cotangent)).sum()
    for name in ("hidden_states", "attentions", "cross_attentions"):
        for layer, value in enumerate(out.get(name) or ()):
            values[f"output.{name}.{layer}"] = value
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            values[f"gradient.{name}"] = parameter.grad
    for name, tensor in tensors.items():
        if tensor.grad is not None:
            values[f"gradient.{name}"] = tensor.grad
    return values


@torch.no_grad()
def run_cached(model, inputs):
    """Return the logits of one token a step."""
    tensors, cache, logits = as_tensors(inputs), None, []
    mask, *others = (tensors.pop(name) for name in ("attention_mask", "input_ids", "token_type_ids"))
    for step in range(LENGTH):
        ids, types = (tensor[:, step : step + 1] for tensor in others)
        out = model(
            ids,
            token_type_ids=types,
            attention_mask=mask[:, : step + 1],
            past_key_values=cache,
            use_cache=True,
            **tensors,
        )
        cache = out.past_key_values
        logits.append(out.logits)
    return {"output.logits": torch.cat(logits, 1)}


def compute(model, run, inputs, generator):
    values = run_cached(model, inputs) if run == "cached" else run_once(model, inputs, generator)
    return {name: np.asarray(torch.as_tensor(value).detach(), np.float32) for name, value in values.items()}


def write(folder, model, runs, generator):
    model.float().save_pretrained(folder, safe_serialization=True)
    model.double().eval()
    for run in runs:
        inputs = draw_inputs(model, run, generator)
        given = {f"input.{name}": value for name, value in inputs.items()}
        np.savez(folder / f"{run}.npz", **given, **compute(model, run, inputs, generator))


def make(name, generator):
    _, kind, changes, runs = MODELS[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(len(name))
    model = model_class(model_class.config_class(**SIZES | changes))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Also biases and norms, whose fresh values 0 and 1 would hide that one is taken for another.
            parameter.normal_(0, 0.3).add_(1.0 if path.endswith("LayerNorm.weight") else 0.0)
    write(FOLDER / name, model, runs, generator)
    if name in PRUNED:
        for heads in PRUNING:
            model.prune_heads(heads)
        write(FOLDER / f"{name}_pruned", model, PRUNED[name], generator)


class Stored:
    """Give the stored cotangents in the order in which they are drawn."""

    def __init__(self, stored):
        self.values = iter([stored[name] for name in stored.files if name.startswith("cotangent.")])

    def normal(self, size):
        value = next(self.values)
        assert value.shape == tuple(size)
        return value


def check():
    for file in sorted(FOLDER.glob("*/*.npz")):
        folder, stored = file.parent, np.load(file)
        kind = MODELS[folder.name.removesuffix("_pruned")][1]
        model = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").double().eval()
        inputs = {name.removeprefix("input."): stored[name] for name in stored.files if name.startswith("input.")}
        values = compute(model, file.stem, inputs, Stored(stored))
        assert set(values) == {name for name in stored.files if not name.startswith("input.")}, file
        largest = max(np.abs(values[name] - stored[name]).max() for name in values)
        print(f"{folder.name}/{file.name}: {largest:.2g}")


if __name__ == "__main__":
    if "--check" in sys.argv:
        check()
    else:
        for number, (name, (version, *_)) in enumerate(MODELS.items()):
            if version == transformers.__version__:
                make(name, np.random.default_rng(number))
