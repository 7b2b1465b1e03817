"""Trees of parameters as tests look at them."""

import jax


def by_path(tree):
    """Leaves by their path, written "a/b/c"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
