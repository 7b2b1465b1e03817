"""Tensors of a file fitted to a model: names resolved, what differs reported, each read to where it is to live."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from flaxbert.sharding import AxisRules, tree_shardings
from flaxbert.weights import names
from flaxbert.weights.checkpoint_files import Checkpoint, open_checkpoint
from flaxbert.weights.formats.orbax_params import ParameterTensor
from flaxbert.weights.tensors import LazyTensor, tensors_equal

_log = logging.getLogger("flaxbert")


def load(
    path: str | Path,
    model: Any,
    *,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
) -> dict[str, Any]:
    """The float32 parameters of `model` (a `PreTrainedModel`) from what `source.read` reads.

    The host holds one layer, or one other tensor, at a time; with a mesh, each process only what its devices need.
    The arguments and errors are those of `PreTrainedModel.from_pretrained`.
    """
    checkpoint = open_checkpoint(Path(path))
    fitted = fit(checkpoint, model, strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes)
    checkpoint.verify_checksums()
    shardings = None if mesh is None else tree_shardings(mesh, rules or AxisRules(), model.logical_axes())
    return assemble(fitted, draw(fitted, model, key, shardings), shardings)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The weights of a file that a model takes.

    Attributes:
        table: the model's table of names.
        tensors: by canonical name, all that are taken from the file.
        afresh: names of those that are drawn.
        left_out: names in the file of what is not taken: another head's, buffers, aliases of tied weights.
    """

    table: Mapping[str, names.Entry]
    tensors: Mapping[str, LazyTensor]
    afresh: frozenset[str]
    left_out: tuple[str, ...]


def fit(source: Checkpoint, model: Any, *, strict: bool = True, ignore_mismatched_sizes: bool = False) -> Fitted:
    """Which tensors of a checkpoint a model takes; raises, or warns, of the rest as `from_pretrained` says."""
    file, tensors = source.file, source.tensors
    entries = names.entries(model.parameter_shapes(), vocab_size=model.config.vocab_size)
    table = {entry.name: entry for entry in entries}
    stored = _canonical_names(tensors, file)
    _resolve_ties(stored, tensors, table, file)
    found = {name: tensors[spelling] for name, spelling in stored.items()}
    afresh = _report(file, model, table, found, strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes)
    taken = {name: found[name] for name in table if name not in afresh}
    left_out = tensors.keys() - {stored[name] for name in taken}
    return Fitted(table, taken, frozenset(afresh), tuple(sorted(left_out)))


def _canonical_names(tensors: Mapping[str, LazyTensor], file: Path) -> dict[str, str]:
    """Canonical name -> name in the file."""
    bare = not any(name.startswith("bert.") for name in tensors)
    stored: dict[str, str] = {}
    for name in tensors:
        canonical = names.canonical(name, bare=bare)
        if canonical in stored:
            raise ValueError(f"{file}: {name!r} and {stored[canonical]!r} are two spellings of one weight")
        stored[canonical] = name
    return stored


def _resolve_ties(
    stored: dict[str, str], tensors: Mapping[str, LazyTensor], table: Mapping[str, names.Entry], file: Path
) -> None:
    """Takes the aliases of tied weights out of `stored`, after a look that they agree with what they alias."""
    if names.UNTIED_BIAS in table and names.SPARE_BIAS in stored:
        spare = stored.pop(names.SPARE_BIAS)
        stored.setdefault(names.UNTIED_BIAS, spare)
    for alias, name in names.TIED.items():
        if alias not in stored or alias in table or "cls.predictions.bias" not in table:
            continue
        if name not in stored:
            stored[name] = stored.pop(alias)
        elif tensors_equal(tensors[stored[alias]], tensors[stored[name]]):
            del stored[alias]
        else:
            raise ValueError(
                f"{file}: {alias} differs from {name}, but the config ties them; set tie_word_embeddings to false"
            )


def _report(
    file: Path,
    model: Any,
    table: Mapping[str, names.Entry],
    found: Mapping[str, LazyTensor],
    *,
    strict: bool,
    ignore_mismatched_sizes: bool,
) -> set[str]:
    """Raises one error that lists all that does not fit, or warns of what was allowed; the names to draw afresh."""
    missing = [name for name in table if name not in found]
    unexpected = [name for name in found if name not in table and name not in names.BUFFERS]
    # Every encoder was trained with a pooler; a head that does without leaves it out, as in transformers.
    spare = [name for name in unexpected if name in names.POOLER]
    if len(spare) == len(names.POOLER):
        unexpected = [name for name in unexpected if name not in spare]
        _log.warning("%s: %s has no pooler; left out: %s", file, type(model).__name__, ", ".join(sorted(spare)))
    both = [name for name in table if name in found]
    shaped = [name for name in both if found[name].shape != table[name].foreign_shape]
    typed = [name for name in both if not jnp.issubdtype(found[name].dtype, jnp.floating)]

    def differing(name: str) -> str:
        in_file, wanted = list(found[name].shape), list(table[name].foreign_shape)
        return f"{name}: {in_file} in the file, {wanted} in {type(model).__name__}"

    lines = [
        *_listed("missing", missing),
        *_listed("unexpected", unexpected),
        *_listed("of another shape", sorted(map(differing, shaped))),
        *_listed("no floating-point numbers", sorted(f"{name}: {found[name].dtype}" for name in typed)),
    ]
    if not lines:
        return set()
    allowed = not typed and (ignore_mismatched_sizes or not shaped)
    if missing or unexpected:
        allowed = allowed and not strict and all(map(names.is_head, missing + unexpected))
    if allowed:
        _log.warning("%s: loading %s:\n%s", file, type(model).__name__, "\n".join(lines))
        return {*missing, *shaped}
    hint = (
        "strict=False draws a missing head afresh and leaves an unexpected one out, ignore_mismatched_sizes=True draws "
        "what has another shape; nothing else of the encoder may differ"
    )
    raise ValueError("\n".join([f"{file}: the weights do not fit {type(model).__name__}:", *lines, hint]))


def _listed(what: str, found: list[str]) -> list[str]:
    return [f"  {len(found)} {what}:", *(f"    {name}" for name in found)] if found else []


# -- arrays ----------------------------------------------------------------------------------------------


def draw(
    fitted: Fitted, model: Any, key: jax.Array | None = None, shardings: Any = None
) -> dict[names.Path, jax.Array]:
    """Fresh values of the parameters that lack a weight; what else `init` draws is never computed."""
    paths = sorted({fitted.table[name].path for name in fitted.afresh})
    if not paths:
        return {}

    def fresh(key: jax.Array) -> list[jax.Array]:
        params = model.init(key, model.example_ids)["params"]
        return [names.leaf(params, path) for path in paths]

    placed = None if shardings is None else [names.leaf(shardings, path) for path in paths]
    drawn = jax.jit(fresh, out_shardings=placed)(jax.random.key(0) if key is None else key)
    return dict(zip(paths, drawn, strict=True))


def assemble(
    fitted: Fitted, drawn: Mapping[names.Path, jax.Array] | None = None, shardings: Any = None
) -> dict[str, Any]:
    """The tree of parameters: what was drawn and, over it, what is stored."""
    table = fitted.table
    leaves: dict[names.Path, jax.Array] = dict(drawn or {})
    layers: dict[int, dict[names.Path, tuple[names.Entry, LazyTensor]]] = {}
    for name, tensor in fitted.tensors.items():
        entry = table[name]
        if isinstance(tensor, ParameterTensor) and entry.words is tensor.entry.words is None:
            # All layers of it are read at once, and once.
            if entry.layer in (None, 0):
                whole = names.leaf(shardings, entry.path) if shardings else None
                leaves[entry.path] = _on_devices(tensor.leaf(), whole)
        elif entry.layer is None:
            leaves[entry.path] = _placed(entry, tensor, names.leaf(shardings, entry.path) if shardings else None)
        else:
            layers.setdefault(entry.layer, {})[entry.path] = entry, tensor
    depth = 1 + max((entry.layer for entry in table.values() if entry.layer is not None), default=-1)
    for layer, parts in layers.items():
        placed = {}
        for path, (entry, tensor) in parts.items():
            whole = names.leaf(shardings, path) if shardings else None
            if path not in leaves:
                leaves[path] = jnp.zeros((depth, *entry.shape), jnp.float32, device=whole)
            one = None if whole is None else NamedSharding(whole.mesh, PartitionSpec(*whole.spec[1:]))
            placed[path] = _placed(entry, tensor, one)
        # One call a layer: its tensors are no longer needed when the next one's are read.
        leaves |= _put_layer({path: leaves[path] for path in placed}, placed, layer)
    return names.tree(leaves)


def _placed(entry: names.Entry, tensor: LazyTensor, sharding: NamedSharding | None) -> jax.Array:
    """The tensor in our layout, in float32, where it is to live: each device reads its own part."""

    def part(index: Any) -> np.ndarray:
        return np.ascontiguousarray(entry.read(tensor, index), np.float32)

    if sharding is None:
        return jnp.asarray(part((slice(None),) * len(entry.shape)))
    return jax.make_array_from_callback(entry.shape, sharding, part)


def _on_devices(parameter: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """A parameter that is in our layout already, in float32, where it is to live."""
    if sharding is None:
        return jnp.asarray(parameter, jnp.float32)
    return jax.make_array_from_callback(parameter.shape, sharding, lambda index: parameter[index].astype(np.float32))


@functools.partial(jax.jit, donate_argnums=0)
def _put_layer(
    stacks: dict[names.Path, jax.Array], parts: dict[names.Path, jax.Array], layer: ArrayLike
) -> dict[names.Path, jax.Array]:
    """Writes one layer's parameters into the stacks, in place."""
    return {path: stacks[path].at[layer].set(part) for path, part in parts.items()}
