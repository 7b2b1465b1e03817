"""Parameters that training leaves as they are."""

from collections.abc import Mapping
from typing import Any

import jax
import optax


def freeze(optimizer: optax.GradientTransformation, prefixes: tuple[str, ...]) -> optax.GradientTransformation:
    """The optimizer for all parameters but those whose path begins with one of `prefixes`, such as "bert/embeddings".

    Those get no update and no state, and their gradients no part in the clipped norm.

    Raises:
        ValueError: from `init`: a prefix without parameters, or nothing left to train.
    """

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: "frozen" if _is_below(path) else "trained", params)

    def _is_below(path: tuple[Any, ...]) -> bool:
        keys = [key.key for key in path]
        return any(keys[: prefix.count("/") + 1] == prefix.split("/") for prefix in prefixes)

    split = optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)

    def init(params: Any) -> Any:
        for prefix in prefixes:
            _require(prefix, params)
        if "trained" not in jax.tree.leaves(labels(params)):
            raise ValueError(f"frozen is {', '.join(prefixes)}, which leaves nothing to train")
        return split.init(params)

    return optax.GradientTransformation(init, split.update)


def _require(prefix: str, params: Any) -> None:
    """Raises for a prefix that the tree does not have, with what it has at the place of the first wrong part."""
    node, walked = params, []
    for part in prefix.split("/"):
        if not isinstance(node, Mapping) or part not in node:
            place = "/".join(walked) or "the model"
            there = ", ".join(sorted(node)) if isinstance(node, Mapping) else "nothing below it"
            raise ValueError(f"frozen has {prefix!r}: no such parameters; {place} has {there}")
        node = node[part]
        walked.append(part)
