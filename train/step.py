"""The train step: gradients of a global mean loss and one optimizer update, in one compiled function."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Sharding
from jaxtyping import PyTree

from flaxbert.encoder_decoder import AnyModel
from flaxbert.layers import Params
from flaxbert.losses import Loss
from flaxbert.sharding import AxisRules, constrain
from train.distributed import Placement
from train.optim import global_norm

Batch = Mapping[str, jax.Array]
Seed = jax.Array | np.uint32  # an argument of the step, not a constant in it
# (params, batch, dropout key) -> loss; without a key there is no dropout.
LossFunction = Callable[[Params, Batch, jax.Array | None], Loss]


@struct.dataclass
class TrainState:
    """Step number, parameters and optimizer state; no random state, because keys are functions of (seed, step)."""

    step: Any  # int32 scalar; like the other leaves, a shape or a sharding in trees of those
    params: Params
    opt_state: optax.OptState


# (state, batch, seed, fixed arguments of the loss) -> (next state, metrics of the step).
TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
TermsAndGradients = tuple[jax.Array, Params]


def state_shapes(model: AnyModel, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the shapes and dtypes of the state without allocating it."""
    shapes = model.parameter_shapes()
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, jax.eval_shape(optimizer.init, shapes))


def state_shardings(model: AnyModel, optimizer: optax.GradientTransformation, placement: Placement) -> TrainState:
    """Return the sharding of every array of the state: moments like their parameters, all others replicated.

    A moment is an array of the optimizer whose path ends with the path of a parameter and that has its shape.
    """
    shapes, by_parameter = state_shapes(model, optimizer), placement.parameters(model)
    shape_of = dict(jax.tree_util.tree_flatten_with_path(shapes.params)[0])
    sharding_of = dict(jax.tree_util.tree_flatten_with_path(by_parameter)[0])

    def sharding(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> Sharding:
        for end in (path[start:] for start in range(len(path))):
            if end in shape_of and shape_of[end].shape == leaf.shape:
                return sharding_of[end]
        return placement.replicated

    moments = jax.tree_util.tree_map_with_path(sharding, shapes.opt_state)
    return TrainState(placement.replicated, by_parameter, moments)


def create_state(
    model: AnyModel,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    *,
    seed: int,
    params: Params | None = None,
) -> TrainState:
    """Return the first state with the given shardings: of `params`, or newly initialised with `seed`."""

    def with_optimizer(params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def initialise(key: jax.Array) -> TrainState:
        return with_optimizer(model.init(key, model.example_ids)["params"])

    if params is None:
        return jax.jit(initialise, out_shardings=shardings)(jax.random.key(seed))
    on_devices = jax.tree.map(jax.device_put, params, shardings.params)
    return jax.jit(with_optimizer, out_shardings=shardings)(on_devices)


def train_step(
    state: TrainState,
    batch: Batch,
    seed: Seed,
    *,
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    gradient_accumulation_steps: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one update, and the metrics: a pure function, which `compile_step` compiles.

    If the loss or the norm of the gradients is not finite, parameters and optimizer state stay as they are, bit for
    bit, and only the step advances. Both are global values, so all devices decide alike.

    The key of dropout is a function of (seed, step), so a resumed run has the masks of an uninterrupted one.
    """
    # Folded with 1, because the parameters were initialised with the seed itself.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
    terms, gradients = terms_and_gradients(
        loss_function, state.params, batch, key, gradient_accumulation_steps=gradient_accumulation_steps
    )
    metrics = {"loss": jnp.sum(terms), "terms": terms, "gradient_norm": global_norm(gradients)}
    is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])

    def update() -> tuple[optax.Params, optax.OptState]:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    params, opt_state = _update_if(is_finite, update, (state.params, state.opt_state))
    return TrainState(state.step + 1, params, opt_state), metrics


def _update_if(condition: jax.Array, update: Callable[[], PyTree], old: PyTree) -> PyTree:
    """Return the result of `update`, or `old`, bit for bit, if the condition is false.

    On TPUs a branch takes 7 % of a step of BERT-large more than a selection, which is fused into the update. On the CPU
    the selection takes 20 % of a step on few tokens more, because XLA writes the moments twice.
    """
    return jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(condition, update, lambda: old),
        default=lambda: jax.tree.map(lambda new, kept: jnp.where(condition, new, kept), update(), old),
    )


def terms_and_gradients(
    loss_function: LossFunction,
    params: Params,
    batch: Batch,
    key: jax.Array | None,
    *,
    gradient_accumulation_steps: int = 1,
) -> TermsAndGradients:
    """Return the terms of a batch's mean loss and its gradients, computed at once or in several accumulation steps.

    Every term is a sum over the whole batch, divided by the weight of the whole batch. The accumulation steps therefore
    add up to the same result, whatever their own weights are. Only dropout differs: each step has its own key.
    """
    if gradient_accumulation_steps == 1:
        return _terms_and_gradients(lambda params: loss_function(params, batch, key), params)
    parts = {name: _accumulation_parts(values, gradient_accumulation_steps) for name, values in batch.items()}
    keys = None if key is None else jax.random.split(key, gradient_accumulation_steps)
    # Weights depend on the labels alone, so the compiler removes the rest of this forward pass.
    weight = jnp.sum(jax.lax.map(lambda rows: loss_function(params, rows, None).weight, parts), axis=0)

    def add(total: TermsAndGradients, inputs: tuple[Batch, jax.Array | None]) -> tuple[TermsAndGradients, None]:
        share = _terms_and_gradients(lambda params: Loss(loss_function(params, *inputs).sum, weight), params)
        return jax.tree.map(jnp.add, total, share), None

    zeros = jnp.zeros_like(weight), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, (parts, keys))[0]


def _terms_and_gradients(loss: Callable[[Params], Loss], params: Params) -> TermsAndGradients:
    def total(params: Params) -> tuple[jax.Array, jax.Array]:
        terms = loss(params).terms
        return jnp.sum(terms), terms

    gradients, terms = jax.grad(total, has_aux=True)(params)
    return terms, gradients


def _accumulation_parts(values: jax.Array, count: int) -> jax.Array:
    """Reshape [B, ...] to [count, B / count, ...]. Part i takes rows i, i + count, ...: each stays on its device."""
    rows = jnp.moveaxis(values.reshape(-1, count, *values.shape[1:]), 1, 0)
    return constrain(rows, AxisRules(), None, "batch", *(None,) * (values.ndim - 1))


def compile_step(
    loss_function: Callable[..., Loss],
    optimizer: optax.GradientTransformation,
    placement: Placement,
    shardings: TrainState,
    *,
    gradient_accumulation_steps: int = 1,
    fixed: Sequence[PyTree] = (),
) -> jax.stages.Wrapped:
    """Return the jitted train step; it donates the memory of the old state to the new one.

    The seed is an argument of the step and not a constant in it, so that runs with several seeds share one program. The
    step has further arguments with the shardings `fixed`, such as a teacher's parameters, which the loss takes first.
    """

    def step(
        state: TrainState, batch: Batch, seed: Seed, *fixed_values: Params
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        with placement.tracing():
            return train_step(
                state,
                batch,
                seed,
                loss_function=functools.partial(loss_function, *fixed_values),
                optimizer=optimizer,
                gradient_accumulation_steps=gradient_accumulation_steps,
            )

    return jax.jit(
        step,
        in_shardings=(shardings, placement.batch_sharding, placement.replicated, *fixed),
        out_shardings=(shardings, placement.replicated),
        donate_argnums=0,
    )
