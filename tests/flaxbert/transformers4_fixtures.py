"""The fixtures that make_transformers4_fixtures.py made, and the tests' view of them."""

from pathlib import Path

import jax
import numpy as np

from flaxbert.families import architecture_of, family_of
from flaxbert.weights import names

FOLDER = Path(__file__).with_name("fixtures") / "transformers4"


def stored_values(folder, run):
    """The arrays of a run: {"input": {name: array}, "output": ..., "cotangent": ..., "gradient": ...}."""
    values = {"input": {}, "output": {}, "cotangent": {}, "gradient": {}}
    with np.load(FOLDER / folder / f"{run}.npz") as file:
        for key in file.files:
            kind, _, name = key.partition(".")
            array = file[key]
            values[kind][name] = array.astype(np.int32) if array.dtype == np.int64 else array
    return values


def as_tensors(model, tree):
    """A tree in the shape of the parameters, as tensors by the names in the model's file."""
    family, tree, tensors = family_of(model), jax.device_get(tree), {}
    prefix = family.prefixed("") if architecture_of(model).is_base_model else ""
    for mapping in names.name_mappings(family, tree):
        leaf = names.leaf_at(tree, mapping.path)
        leaf = leaf if mapping.layer is None else leaf[mapping.layer]
        tensors[mapping.name.removeprefix(prefix)] = mapping.to_file_layout(leaf)
    return tensors
