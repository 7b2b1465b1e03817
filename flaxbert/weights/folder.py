"""A Hugging Face model folder: config.json and one model.safetensors, read strictly and written whole."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flaxbert.files import written_whole
from flaxbert.weights import names

_log = logging.getLogger("flaxbert")

WEIGHTS_FILE = "model.safetensors"


def load(path: str | Path, model: Any, *, strict: bool = True, key: jax.Array | None = None) -> dict[str, Any]:
    """The float32 parameters of `model` (a `PreTrainedModel`) from a folder or a .safetensors file.

    The arguments and errors are those of `PreTrainedModel.from_pretrained`.
    """
    file = _weights_file(Path(path))
    shapes = model.parameter_shapes()
    table = {entry.name: entry for entry in names.entries(shapes)}
    with _open(file) as tensors:
        stored = _canonical_names(tensors, file)
        _resolve_ties(stored, tensors, table, file)
        missing = [name for name in table if name not in stored]
        unexpected = [name for name in stored if name not in table and name not in names.BUFFERS]
        _report(file, model, table, stored, tensors, missing, unexpected, strict=strict)
        params = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
        _draw(params, [table[name].path for name in missing], model, jax.random.key(0) if key is None else key)
        for name, entry in table.items():
            if name in stored:
                _place(params, entry, tensors.get_tensor(stored[name]))
    return jax.tree.map(jnp.asarray, params)


def save(path: str | Path, model: Any, params: Mapping[str, Any]) -> None:
    """Writes config.json and model.safetensors, which `transformers` loads; other files there stay.

    Both files are written aside and then renamed, the config last, so a reader never sees half of one and a failure
    leaves the old ones.

    Raises:
        ValueError: the parameters are not those of the model; lists each difference.
    """
    differing = names.shape_differences(dict(params), model.parameter_shapes())
    if differing:
        raise ValueError("\n".join([f"these are not the parameters of {type(model).__name__}:", *differing]))
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    host = jax.tree.map(lambda leaf: np.asarray(jax.device_get(leaf)), dict(params))
    architecture = type(model).__name__
    bare = architecture == "BertModel"
    tensors = {}
    for entry in names.entries(host):
        parameter = _leaf(host, entry.path)
        name = entry.name.removeprefix("bert.") if bare else entry.name
        tensors[name] = entry.to_foreign(parameter if entry.layer is None else parameter[entry.layer])
    if names.UNTIED_BIAS in tensors:
        tensors[names.SPARE_BIAS] = tensors[names.UNTIED_BIAS]  # transformers 5 misses it otherwise
    config = model.config
    if "qa_outputs.weight" in tensors and config.num_labels != 2:
        config = config.replace(num_labels=2)  # transformers sizes this head by it
    text = json.dumps(config.to_dict(architecture=architecture), indent=2, ensure_ascii=False) + "\n"
    with written_whole(folder / "config.json") as config_file, written_whole(folder / WEIGHTS_FILE) as weights_file:
        save_file(tensors, weights_file, metadata={"format": "pt"})
        config_file.write_text(text)


def _weights_file(path: Path) -> Path:
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if file.is_file():
        return file
    beside = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    hint = f"; the folder holds {', '.join(beside[:10])}" if beside else ""
    raise FileNotFoundError(f"{file}: no such file; weights are read from {WEIGHTS_FILE}{hint}")


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from None


def _canonical_names(tensors: Any, file: Path) -> dict[str, str]:
    """Canonical name -> name in the file."""
    in_file = list(tensors.keys())
    bare = not any(name.startswith("bert.") for name in in_file)
    stored: dict[str, str] = {}
    for name in in_file:
        canonical = names.canonical(name, bare=bare)
        if canonical in stored:
            raise ValueError(f"{file}: {name!r} and {stored[canonical]!r} are two spellings of one weight")
        stored[canonical] = name
    return stored


def _resolve_ties(stored: dict[str, str], tensors: Any, table: Mapping[str, names.Entry], file: Path) -> None:
    """Takes the aliases of tied weights out of `stored`, after a look that they agree with what they alias."""
    if names.UNTIED_BIAS in table and names.SPARE_BIAS in stored:
        spare = stored.pop(names.SPARE_BIAS)
        stored.setdefault(names.UNTIED_BIAS, spare)
    for alias, name in names.TIED.items():
        if alias not in stored or alias in table or "cls.predictions.bias" not in table:
            continue
        if name not in stored:
            stored[name] = stored.pop(alias)
        elif np.array_equal(tensors.get_tensor(stored[alias]), tensors.get_tensor(stored[name])):
            del stored[alias]
        else:
            raise ValueError(
                f"{file}: {alias} differs from {name}, but the config ties them; set tie_word_embeddings to false"
            )


def _report(
    file: Path,
    model: Any,
    table: Mapping[str, names.Entry],
    stored: Mapping[str, str],
    tensors: Any,
    missing: list[str],
    unexpected: list[str],
    *,
    strict: bool,
) -> None:
    """Raises one error that lists all that does not fit, or warns of what `strict=False` allows."""
    shaped = []
    for name in table.keys() & stored.keys():
        in_file, wanted = tuple(tensors.get_slice(stored[name]).get_shape()), table[name].foreign_shape
        if in_file != wanted:
            shaped.append(f"{name}: {list(in_file)} in the file, {list(wanted)} in {type(model).__name__}")
    allowed = not strict and not shaped and all(map(names.is_head, missing + unexpected))
    lines = (
        _listed("missing", missing) + _listed("unexpected", unexpected) + _listed("of another shape", sorted(shaped))
    )
    if not lines:
        return
    if allowed:
        _log.warning("%s: loading %s:\n%s", file, type(model).__name__, "\n".join(lines))
        return
    hint = "strict=False draws a missing head afresh and leaves an unexpected one out; the encoder must always fit"
    raise ValueError("\n".join([f"{file}: the weights do not fit {type(model).__name__}:", *lines, hint]))


def _listed(what: str, found: list[str]) -> list[str]:
    return [f"  {len(found)} {what}:", *(f"    {name}" for name in found)] if found else []


def _draw(params: dict[str, Any], paths: Sequence[names.Path], model: Any, key: jax.Array) -> None:
    """Overwrites the parameters at some paths by fresh ones; what else `init` draws is never computed."""
    if not paths:
        return
    fresh = jax.jit(lambda key: [_leaf(model.init(key, model.example_ids)["params"], path) for path in paths])(key)
    for path, leaf in zip(paths, fresh, strict=True):
        _leaf(params, path)[...] = leaf


def _leaf(tree: Mapping[str, Any], path: names.Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _place(params: dict[str, Any], entry: names.Entry, tensor: np.ndarray) -> None:
    target = _leaf(params, entry.path)
    target[... if entry.layer is None else entry.layer] = entry.to_ours(tensor)
