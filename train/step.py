"""The train step: gradients of a global mean loss, one optimizer update, all in one compiled function."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from flaxbert.constraints import constrain
from flaxbert.losses import Loss
from flaxbert.models import PreTrainedModel
from flaxbert.sharding import AxisRules
from train.distributed import Placement
from train.optim import global_norm

Params = Any
Batch = Mapping[str, jax.Array]
Seed = jax.Array | np.uint32  # an argument of the step, not a constant in it
# (params, batch, dropout key) -> loss; a key of None switches dropout off.
LossFunction = Callable[[Params, Batch, jax.Array | None], Loss]


@struct.dataclass
class TrainState:
    """All that training changes; random numbers come from (seed, step) and are not part of it."""

    step: Any  # arrays; in trees of shapes and shardings, those
    params: Params
    opt_state: optax.OptState


# (state, batch, seed) -> the next state, and metrics of the step.
Step = Callable[[TrainState, Batch, Seed], tuple[TrainState, dict[str, jax.Array]]]


def state_shapes(model: PreTrainedModel, optimizer: optax.GradientTransformation) -> TrainState:
    """The state as shapes and dtypes; nothing is allocated."""
    shapes = model.parameter_shapes()
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, jax.eval_shape(optimizer.init, shapes))


def state_shardings(
    model: PreTrainedModel, optimizer: optax.GradientTransformation, placement: Placement
) -> TrainState:
    """Where every array of the state lives: moments with their parameters, all others on every device.

    A moment is an array of the optimizer's whose path ends with a parameter's path and that has its shape.
    """
    shapes, by_parameter = state_shapes(model, optimizer), placement.parameters(model)
    shape_of = dict(jax.tree_util.tree_flatten_with_path(shapes.params)[0])
    sharding_of = dict(jax.tree_util.tree_flatten_with_path(by_parameter)[0])

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        for end in (path[start:] for start in range(len(path))):
            if end in shape_of and shape_of[end].shape == leaf.shape:
                return sharding_of[end]
        return placement.replicated

    moments = jax.tree_util.tree_map_with_path(place, shapes.opt_state)
    return TrainState(placement.replicated, by_parameter, moments)


def create_state(
    model: PreTrainedModel,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    *,
    seed: int,
    params: Params | None = None,
) -> TrainState:
    """The first state, made where it is to live, inside jit: from host `params`, or drawn afresh with `seed`."""

    def begin(params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def fresh(key: jax.Array) -> TrainState:
        return begin(model.init(key, model.example_ids)["params"])

    if params is None:
        return jax.jit(fresh, out_shardings=shardings)(jax.random.key(seed))
    placed = jax.tree.map(jax.device_put, params, shardings.params)
    return jax.jit(begin, out_shardings=shardings)(placed)


def train_step(
    state: TrainState,
    batch: Batch,
    seed: Seed,
    *,
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    gradient_accumulation_steps: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, as a pure function; `compile_step` is this with shardings, donation and jit.

    Dropout's key is a function of (seed, step), so a resumed run draws what an unbroken one would have drawn.
    """
    # 1: the parameters were drawn with the seed itself.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
    terms, gradients = terms_and_gradients(
        loss_function, state.params, batch, key, gradient_accumulation_steps=gradient_accumulation_steps
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": jnp.sum(terms), "terms": terms, "gradient_norm": global_norm(gradients)}
    return TrainState(state.step + 1, params, opt_state), metrics


def terms_and_gradients(
    loss_function: LossFunction,
    params: Params,
    batch: Batch,
    key: jax.Array | None,
    *,
    gradient_accumulation_steps: int = 1,
) -> tuple[jax.Array, Params]:
    """The terms of a batch's mean loss, and its gradients, of all rows at once or of one micro-batch after another.

    Either way every term is a sum over the whole batch divided by the weight of the whole batch, so that the parts add
    up to the whole whatever each of them weighs. Only dropout differs: each micro-batch has a key of its own.
    """
    if gradient_accumulation_steps == 1:
        return _terms_and_gradients(lambda params: loss_function(params, batch, key), params)
    parts = {name: _parts(values, gradient_accumulation_steps) for name, values in batch.items()}
    keys = None if key is None else jax.random.split(key, gradient_accumulation_steps)
    # Weights come from the labels alone: the compiler leaves the rest of this pass out.
    weight = jnp.sum(jax.lax.map(lambda part: loss_function(params, part, None).weight, parts), axis=0)

    def add(total: Any, given: tuple[Batch, jax.Array | None]) -> tuple[Any, None]:
        share = _terms_and_gradients(lambda params: Loss(loss_function(params, *given).sum, weight), params)
        return jax.tree.map(jnp.add, total, share), None

    nothing = jnp.zeros_like(weight), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, nothing, (parts, keys))[0]


def _terms_and_gradients(loss: Callable[[Params], Loss], params: Params) -> tuple[jax.Array, Params]:
    def total(params: Params) -> tuple[jax.Array, jax.Array]:
        terms = loss(params).terms
        return jnp.sum(terms), terms

    gradients, terms = jax.grad(total, has_aux=True)(params)
    return terms, gradients


def _parts(values: jax.Array, count: int) -> jax.Array:
    """[B, ...] as [count, B / count, ...]: every count-th row, so that each device's rows stay where they are."""
    parts = jnp.moveaxis(values.reshape(-1, count, *values.shape[1:]), 1, 0)
    return constrain(parts, AxisRules(), None, "batch", *(None,) * (values.ndim - 1))


def compile_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    placement: Placement,
    shardings: TrainState,
    *,
    gradient_accumulation_steps: int = 1,
) -> Step:
    """The jitted step: state in and out where it lives (its memory reused), the rows of the batch divided.

    The seed is an argument, not a constant, so that runs with several seeds share one program.
    """
    how: dict[str, Any] = {"loss_function": loss_function, "optimizer": optimizer}

    def step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, dict[str, jax.Array]]:
        with placement.tracing():
            return train_step(state, batch, seed, gradient_accumulation_steps=gradient_accumulation_steps, **how)

    return jax.jit(
        step,
        in_shardings=(shardings, placement.batch_sharding, placement.replicated),
        out_shardings=(shardings, placement.replicated),
        donate_argnums=0,
    )
