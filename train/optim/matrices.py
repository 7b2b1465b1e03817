"""A transformation of single matrices and vectors, applied to parameters that are stacked by layer and split by head.

The encoder keeps the parameters of its L layers in one array, and attention's kernels with an axis for the heads. A
norm, a mean or a factored second moment must be that of one layer's tensor, as PyTorch's optimizers see it.
"""

import math
from typing import Any

import jax
import optax

Path = tuple[Any, ...]


def is_stacked(path: Path) -> bool:
    """Whether the first axis of the parameter at this path counts layers."""
    return any(key.key == "layers" for key in path)


def per_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies `inner` to every layer's tensor on its own, each in the two axes of a linear layer or as a vector.

    The state of `inner` has the shapes of these views, with the layers' axis in front where there is one; its scalars
    stay scalars.
    """
    split = optax.partition({"single": inner, "stacked": _over_layers(inner)}, _labels)

    def init(params: Any) -> Any:
        return split.init(_views(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changed, state = split.update(_views(updates), state, _views(params))
        return jax.tree.map(lambda new, old: new.reshape(old.shape), changed, updates), state

    return optax.GradientTransformation(init, update)


def view_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a parameter as matrices or vectors, one a layer where it is stacked.

    Attention's query, key and value: [D, H, K] as [D, H*K], biases [H, K] as [H*K]; its output: [H, K, D] as
    [H*K, D]. All others keep their shape.
    """
    layers, own = (shape[:1], shape[1:]) if is_stacked(path) else ((), shape)
    kind = path[-1].key
    if kind == "bias":
        return (*layers, math.prod(own))
    if kind == "kernel":
        inputs = len(own) - 1 if path[-2].key == "output" else 1
        return (*layers, math.prod(own[:inputs]), math.prod(own[inputs:]))
    return shape


def _views(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, x: x.reshape(view_shape(path, x.shape)), tree)


def _labels(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "stacked" if is_stacked(path) else "single", tree)


def _over_layers(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` for each entry of the first axis of all arrays; they share its scalars, such as a count of steps."""

    def axes(state: Any) -> Any:
        return jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)

    def init(params: Any) -> Any:
        if not jax.tree.leaves(params):
            return inner.init(params)
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
        return jax.vmap(inner.init, out_axes=axes(jax.eval_shape(inner.init, first)))(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not jax.tree.leaves(updates):
            return updates, state
        over = axes(state)
        return jax.vmap(inner.update, in_axes=(0, over, 0), out_axes=(0, over))(updates, state, params)

    return optax.GradientTransformation(init, update)
