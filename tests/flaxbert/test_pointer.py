"""The pointer network against its equations in PyTorch, and what it promises about masks, feeding and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxbert import layers, losses, sharding
from flaxbert.pointer import PointerSizes, declare_pointer_network, pointer_network
from flaxbert.sharding import REPLICATED

B, T, WIDTH = 3, 7, 4
LENGTHS = np.array([7, 5, 3])
MASK = np.arange(T) < LENGTHS[:, None]
SIZES = {
    "one layer": PointerSizes(input_size=WIDTH, embedding_size=5, hidden_size=6),
    "two layers, both directions": PointerSizes(WIDTH, 5, 6, encoder_layers=2, bidirectional=True),
}


@pytest.fixture(scope="module")
def sizes():
    return SIZES["two layers, both directions"]


def random_parameters(sizes, seed=0):
    rng = np.random.default_rng(seed)
    shapes = layers.map_specs(lambda spec: spec.shape, declare_pointer_network(sizes))
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def random_vectors(seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, WIDTH)).astype(np.float32)


def permutations(seed=2):
    """A permutation of the vectors of each row, and -100 after it."""
    rng = np.random.default_rng(seed)
    return np.stack([np.concatenate([rng.permutation(n), np.full(T - n, -100)]) for n in LENGTHS]).astype(np.int32)


# -- the equations in PyTorch ------------------------------------------------------------------------------


def torch_encoder(params, x, lengths):
    """`torch.nn.LSTM` over packed sequences: states, and the last state of both directions side by side."""
    both = "backward" in params["0"]
    width = params["0"]["forward"]["state"]["kernel"].shape[0]
    lstm = torch.nn.LSTM(x.shape[-1], width, len(params), batch_first=True, bidirectional=both)
    with torch.no_grad():
        for number, layer in params.items():
            for name, ending in (("forward", ""), ("backward", "_reverse"))[: 1 + both]:
                cell = layer[name]
                getattr(lstm, f"weight_ih_l{number}{ending}").copy_(cell["input"]["kernel"].T)
                getattr(lstm, f"weight_hh_l{number}{ending}").copy_(cell["state"]["kernel"].T)
                getattr(lstm, f"bias_ih_l{number}{ending}").copy_(cell["input"]["bias"])
                getattr(lstm, f"bias_hh_l{number}{ending}").zero_()
    named = {name: parameter for name, parameter in lstm.named_parameters()}
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(lengths), batch_first=True)
    states, (hidden, cell) = lstm(packed)
    states = torch.nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])[0]
    last = [torch.cat(list(part[-1 - both :]), dim=-1) for part in (hidden, cell)]
    return states, last, named


def torch_pointer(params, inputs, mask, targets):
    """Logits of each step, teacher-forced, without repetition."""

    def apply(layer, x):
        return x @ layer["kernel"] + layer.get("bias", 0.0)

    x = apply(params["embedding"], inputs)
    context, (hidden, cell), lstm = torch_encoder(params["encoder"], x, LENGTHS)
    p, rows = params["decoder"], torch.arange(len(inputs))
    mapped, allowed, given = apply(p["context"], context), mask.clone(), p["first_input"].expand(len(inputs), -1)
    logits = []
    for target in targets.T:
        gates = apply(p["cell"]["input"], given) + apply(p["cell"]["state"], hidden)
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        scores = torch.tanh(mapped + apply(p["state"], hidden)[:, None]) @ p["score"]["kernel"][:, 0]
        logits.append(scores.masked_fill(~allowed, torch.finfo(torch.float32).min))
        weights = logits[-1].softmax(dim=-1)
        glimpse = (weights[..., None] * mapped).sum(dim=1)
        hidden = apply(p["mix"], torch.cat([glimpse, hidden], dim=-1)).tanh()
        allowed = allowed.clone()
        allowed[rows[target >= 0], target[target >= 0]] = False
        given = x[rows, target.clamp(min=0)]
    return torch.stack(logits, dim=1), lstm


@pytest.mark.parametrize("name", SIZES)
def test_logits_and_gradients_equal_the_equations_in_pytorch(name):
    sizes = SIZES[name]
    params, inputs, targets = random_parameters(sizes), random_vectors(), permutations()
    tree = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)
    logits, lstm = torch_pointer(
        tree, torch.from_numpy(inputs), torch.from_numpy(MASK), torch.from_numpy(targets).long()
    )
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).long().flatten())
    loss.backward()

    @jax.jit
    def both(params):
        def loss_of(params):
            out = pointer_network(params, inputs, MASK, targets=targets)
            return losses.pointing(out.logits, targets).mean, out

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    (mean, out), gradients = both(params)
    counted = targets >= 0
    np.testing.assert_allclose(out.logits[counted], logits.detach().numpy()[counted], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, loss.item(), rtol=1e-5)
    for number, layer in tree["encoder"].items():
        for name, cell in layer.items():
            ending = f"_l{number}" + ("_reverse" if name == "backward" else "")
            cell["input"]["kernel"].grad = lstm[f"weight_ih{ending}"].grad.T
            cell["state"]["kernel"].grad = lstm[f"weight_hh{ending}"].grad.T
            cell["input"]["bias"].grad = lstm[f"bias_ih{ending}"].grad
    expected = jax.tree.map(lambda leaf: leaf.grad.numpy(), tree)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradients))


# -- masks and feeding -------------------------------------------------------------------------------------


def test_a_full_run_is_a_permutation_that_never_points_at_padding(sizes):
    params, inputs = random_parameters(sizes), random_vectors()
    out = jax.jit(pointer_network)(params, inputs, MASK)
    for row, count in zip(np.asarray(out.positions), LENGTHS, strict=True):
        assert sorted(row[:count]) == list(range(count))
    # Some step would rather repeat itself, so the rule above is at work; padding stays out nevertheless.
    again = pointer_network(params, inputs, MASK, steps=2 * T, repeat=True).positions
    assert any(len(set(row[:count])) < count for row, count in zip(again.tolist(), LENGTHS, strict=True))
    assert (np.asarray(again).max(axis=1) < LENGTHS).all()


def test_padding_changes_nothing(sizes):
    params, inputs, targets = random_parameters(sizes), random_vectors(), permutations()
    inputs[~MASK] = 1e3
    padded = pointer_network(params, inputs, MASK, targets=targets).logits
    hard = pointer_network(params, inputs, MASK)
    row, count = 1, LENGTHS[1]
    alone = pointer_network(params, inputs[row : row + 1, :count], targets=targets[row : row + 1, :count]).logits
    np.testing.assert_allclose(padded[row, :count, :count], alone[0], rtol=1e-6, atol=1e-6)
    assert (np.asarray(padded[row, :, count:]) == np.finfo(np.float32).min).all()
    free = pointer_network(params, inputs[row : row + 1, :count])
    np.testing.assert_array_equal(hard.positions[row, :count], free.positions[0])


def test_padding_may_come_first(sizes):
    """Each direction of the encoder passes over padding, wherever it is."""
    params, inputs = random_parameters(sizes), random_vectors()
    moved, mask = np.roll(inputs, 2, axis=1), np.arange(T) >= 2
    out = pointer_network(params, moved, np.broadcast_to(mask, (B, T)), steps=5)
    alone = pointer_network(params, inputs[:, :5])
    np.testing.assert_array_equal(out.positions, alone.positions + 2)
    np.testing.assert_allclose(out.logits[..., 2:], alone.logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("repeat", [False, True])
def test_teacher_forcing_with_the_own_choice_equals_hard_feeding(sizes, repeat):
    params, inputs = random_parameters(sizes), random_vectors()
    hard = pointer_network(params, inputs, MASK, steps=3, repeat=repeat)
    forced = pointer_network(params, inputs, MASK, targets=hard.positions, repeat=repeat)
    np.testing.assert_array_equal(forced.logits, hard.logits)
    np.testing.assert_array_equal(forced.positions, hard.positions)
    other = (hard.positions + 1) % 3
    assert (
        np.abs(pointer_network(params, inputs, MASK, targets=other, repeat=True).logits - hard.logits)[:, 1].max()
        > 0.01
    )


def test_eight_devices_and_bfloat16(sizes):
    params, inputs, targets = (
        random_parameters(sizes),
        np.tile(random_vectors(), (8, 1, 1)),
        np.tile(permutations(), (8, 1)),
    )
    mask = np.tile(MASK, (8, 1))

    def loss_of(params, inputs, mask, targets):
        out = pointer_network(params, inputs, mask, targets=targets)
        return losses.pointing(out.logits, targets).mean

    step = jax.jit(jax.value_and_grad(loss_of))
    expected = step(params, inputs, mask, targets)
    mesh = sharding.make_mesh(data=4, fsdp=2)
    split = jax.device_put((inputs, mask, targets), sharding.batch_sharding(mesh, REPLICATED))
    found = step(jax.device_put(params, sharding.replicated(mesh)), *split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    half = layers.prepare(params, declare_pointer_network(sizes), dtype=jnp.bfloat16, rules=REPLICATED)
    out = jax.jit(pointer_network)(half, inputs, mask, targets=targets)
    scores = np.asarray(out.logits)[np.asarray(out.logits) > -1e38]
    assert scores.dtype == np.float32 and (scores != scores.astype(jnp.bfloat16)).any()  # not rounded to bfloat16
    exact = pointer_network(params, inputs, mask, targets=targets).logits
    counted = targets >= 0
    difference = np.abs(out.logits - exact)[counted]
    assert 0 < difference.max() < 0.1  # 8 bits of the mantissa through up to seven steps


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"steps": 2, "targets": np.zeros((B, 2), np.int32)}, "None where targets are given"),
        ({"steps": T + 1}, "8 steps over 7 positions; give repeat=True"),
        ({"targets": np.full((B, 1), T)}, r"targets holds 7 at \[0, 0\]; allowed: -100 to 6"),
        ({"mask": np.ones((B, T + 1))}, r"mask has shape \[3, 8\]; allowed: \[3, 7\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_arguments(arguments, said):
    params = random_parameters(SIZES["one layer"])
    with pytest.raises(ValueError, match=said):
        pointer_network(params, jnp.asarray(random_vectors()), **arguments)


@pytest.mark.parametrize(
    ("sizes", "said"), [((1, 1, 0), "hidden_size is 0"), ((1, 1, 5, 1, True), "5; .* must be even")]
)
def test_impossible_sizes(sizes, said):
    with pytest.raises(ValueError, match=said):
        PointerSizes(*sizes)
