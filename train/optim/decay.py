"""Which parameters weight decay applies to, and by how much each layer's rate is lowered."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.optim.matrices import is_stacked


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay applies to: kernels and embeddings, no bias, no LayerNorm."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Multiplies updates by `decay` once for every step down from the heads.

    Of L layers, counted from 0, layer i gets decay**(L - i) and the embeddings decay**(L + 1); pooler and heads keep
    their updates. Weight decay, being part of the update, is scaled with it. The rule of BEiT (Bao et al., 2021);
    ELECTRA's released code has one more power of the decay everywhere below the heads.
    """

    def scale(updates: Any, _: Any) -> Any:
        leaves = jax.tree_util.tree_flatten_with_path(updates)[0]
        counts = {leaf.shape[0] for path, leaf in leaves if is_stacked(path)}
        if len(counts) != 1:
            raise ValueError(f"layer_decay needs parameters stacked by layer, of one depth; found depths {counts}")
        depth = counts.pop()

        def scaled(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            if is_stacked(path):
                factors = decay ** (depth - jnp.arange(depth, dtype=jnp.float32))
                return update * factors.reshape(-1, *(1,) * (update.ndim - 1))
            return update * decay ** (depth + 1) if any(key.key == "embeddings" for key in path) else update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(scale)
