"""Trees of parameters as tests look at them."""

import jax
import jax.numpy as jnp
import numpy as np


def by_path(tree):
    """Leaves by their path, written "a/b/c"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def initial(model, *inputs, seed=0):
    """Parameters of a new model: kernels and tables drawn as `init` draws them, zeros for biases, ones for scales.

    Drawn by NumPy: the program of `init` takes a second to compile for every model, which the suite has hundreds of.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), *(inputs or (model.example_ids,)))["params"]
    rng = np.random.default_rng(seed)
    deviation = getattr(getattr(model, "config", None), "initializer_range", 0.02)

    def draw(path, leaf):
        if path[-1].key in ("bias", "scale"):
            return jnp.asarray(np.full(leaf.shape, path[-1].key == "scale", leaf.dtype))
        return jnp.asarray((deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, shapes)
