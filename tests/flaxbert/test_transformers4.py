"""What transformers 5 removed, against values of transformers 4: outputs, gradients, decoding with a cache."""

import jax
import numpy as np
import pytest

import flaxbert
from flaxbert.cache import init_cache
from tests.flaxbert.transformers4_fixtures import FOLDER, as_tensors, stored_values

RUNS = sorted((file.parent.name, file.stem) for file in FOLDER.glob("*/*.npz"))
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # of the largest entry of a tensor's gradient


def flat_outputs(out):
    """Outputs by the names of the fixtures; those of layers have a number at the end."""
    found = {}
    for name in ("last_hidden_state", "pooler_output", "logits", "hidden_states", "attentions", "cross_attentions"):
        value = getattr(out, name, None)
        if isinstance(value, tuple):
            found |= {f"{name}.{layer}": array for layer, array in enumerate(value)}
        elif value is not None:
            found[name] = value
    return found


def run_with_gradients(model, params, stored):
    """Outputs, and gradients by the names in files, of the fixtures' sum."""
    inputs = stored["input"]
    real = {name: value for name, value in inputs.items() if value.dtype == np.float32}

    def run(params, real):
        out = model.apply({"params": params}, **inputs | real, output_attentions=True, output_hidden_states=True)
        found = flat_outputs(out)
        return sum((found[name] * cotangent).sum() for name, cotangent in stored["cotangent"].items()), found

    (_, outputs), (gradients, of_inputs) = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(params, real)
    return outputs, as_tensors(model, gradients) | jax.device_get(of_inputs)


@pytest.mark.parametrize(("folder", "run"), [run for run in RUNS if run[1] != "cached"])
def test_outputs_and_gradients_equal_transformers_4(folder, run):
    model, params = flaxbert.from_pretrained(FOLDER / folder)
    stored = stored_values(folder, run)
    outputs, gradients = run_with_gradients(model, params, stored)
    assert outputs.keys() == stored["output"].keys()
    for name, wanted in stored["output"].items():
        np.testing.assert_allclose(outputs[name], wanted, rtol=0, atol=OUTPUT_TOLERANCE, err_msg=name)
    for name, gradient in gradients.items():
        wanted = stored["gradient"].get(name, np.zeros_like(gradient))  # a table of positions that are not used
        zero = name.endswith("attention.self.key.bias")  # its exact gradient is 0, a softmax does not see a constant
        allowed = 1e-5 if zero else GRADIENT_TOLERANCE * np.abs(wanted).max()
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=allowed, err_msg=name)
    assert stored["gradient"].keys() <= gradients.keys()


@pytest.mark.parametrize("folder", [folder for folder, run in RUNS if run == "cached"])
def test_decoding_with_a_cache_equals_transformers_4(folder):
    model, params = flaxbert.from_pretrained(FOLDER / folder)
    stored = stored_values(folder, "cached")
    inputs = stored["input"]
    source = {name: inputs.pop(name) for name in list(inputs) if name.startswith("encoder_")}
    rows, length = inputs["input_ids"].shape
    encoder_length = source["encoder_attention_mask"].shape[1] if source else None
    cache = init_cache(model, rows=rows, length=length, encoder_length=encoder_length)
    step = jax.jit(lambda cache, inputs: model.apply({"params": params}, cache=cache, **inputs))
    logits = []
    for number in range(length):
        new = {name: array[:, number : number + 1] for name, array in inputs.items()}
        out = step(cache, new | (source if number == 0 else {}))
        cache = out.cache
        logits.append(out.logits)
    tokens = inputs["attention_mask"] == 1
    found = np.concatenate(logits, 1)[tokens]
    np.testing.assert_allclose(found, stored["output"]["logits"][tokens], rtol=0, atol=OUTPUT_TOLERANCE)
