"""Digests of parameters: the same on every mesh and for every layout of layers, another one for every flipped bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxbert.layers import unstack_layers
from flaxbert.sharding import make_mesh
from train.digest import TreeDigest

WHOLE = PartitionSpec()


def params_of():
    draw = np.random.default_rng(0)

    def normal(*shape):
        return draw.standard_normal(shape).astype(np.float32)

    layers = {"kernel": normal(2, 8, 16), "bias": normal(2, 16)}
    other = {"half": normal(8, 8).astype(jnp.bfloat16), "flags": draw.random(8) > 0.5, "count": np.int32(3)}
    return {"bert": {"layers": layers, "word": normal(16, 8)}, **other}


def placed(params, mesh, spec=WHOLE):
    """Arrays of two or more dimensions are divided as `spec` says, the others are whole on every device."""

    def place(leaf):
        own = spec if leaf.ndim >= 2 else WHOLE
        return jax.device_put(leaf, NamedSharding(mesh, own))

    return jax.tree.map(place, params)


def with_flipped_bit(array, bit, device):
    """The array, with one bit flipped in the copy of one device."""
    shards = []
    for shard in array.addressable_shards:
        values = np.array(shard.data)
        if shard.device == device:
            flat = values.reshape(-1).view(np.uint8)
            flat[bit // 8] ^= 1 << bit % 8
        shards.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def test_a_digest_is_the_same_on_every_mesh_and_for_every_layout_of_layers():
    params, devices = params_of(), jax.devices()
    meshes = [
        (make_mesh(devices[:1]), WHOLE),
        (make_mesh(devices[:2]), WHOLE),
        (make_mesh(devices[:2], fsdp=2), PartitionSpec("fsdp")),
        (make_mesh(devices, fsdp=4), PartitionSpec(None, "fsdp")),
        (make_mesh(devices, fsdp=2, tensor=2), PartitionSpec("tensor", "fsdp")),
        (make_mesh(devices, fsdp=2, tensor=2), PartitionSpec(None, ("fsdp", "tensor"))),
    ]
    whole = {TreeDigest(placed(params, mesh, spec)).text for mesh, spec in meshes}
    unstacked = dict(params, bert={**params["bert"], "layers": unstack_layers(params["bert"]["layers"])})
    whole.add(TreeDigest(placed(unstacked, meshes[0][0])).text)
    assert len(whole) == 1


def test_values_that_are_exchanged_change_a_digest():
    params, mesh = params_of(), make_mesh(jax.devices()[:1])
    exchanged = []
    for change in ("rows", "layers", "arrays", "names"):
        layers = dict(params["bert"]["layers"])
        word, half = params["bert"]["word"], params["half"]
        if change == "rows":
            word = np.concatenate([word[1:2], word[:1], word[2:]])
        elif change == "layers":
            layers["bias"] = layers["bias"][::-1]
        elif change == "arrays":
            layers["bias"], word = word.reshape(-1)[:32].reshape(2, 16), word.copy()
            word.reshape(-1)[:32] = params["bert"]["layers"]["bias"].reshape(-1)
        names = {"half": half} if change != "names" else {"other": half}
        rest = {name: params[name] for name in ("flags", "count")}
        exchanged.append({"bert": {"layers": layers, "word": word}, **names, **rest})
    digests = {TreeDigest(placed(tree, mesh)).text for tree in [params, *exchanged]}
    assert len(digests) == 5


@pytest.mark.parametrize("name", ["word", "half", "flags", "count"])
def test_every_flipped_bit_is_found_on_its_device(name):
    mesh = make_mesh()
    array = placed(params_of()["bert"]["word"] if name == "word" else params_of()[name], mesh)
    before = TreeDigest({name: array})
    assert before.differing_copies() == {} == before.differences(before)
    bits = array.size * array.dtype.itemsize * 8
    draw = np.random.default_rng(1)
    for bit in [0] if name == "flags" else draw.integers(bits, size=8).tolist():
        device = jax.devices()[int(draw.integers(8))]
        after = TreeDigest({name: with_flipped_bit(array, bit, device)})
        assert after.differing_copies() == {name: [device]} == after.differences(before)


def test_of_two_copies_that_differ_both_are_named():
    mesh = make_mesh(fsdp=4)
    array = placed(params_of()["bert"]["word"], mesh, PartitionSpec("fsdp"))
    device = jax.devices()[5]
    found = TreeDigest({"word": with_flipped_bit(array, 100, device)}).differing_copies()
    assert found == {"word": [jax.devices()[1], device]}
