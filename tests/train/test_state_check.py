"""Flipped bits in the state of a run, and steps that compute something else the second time."""

import dataclasses
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxbert.sharding import make_mesh
from tests.faults.flip import Flip, flipped, with_flipped_bit
from train.checkpoint.folder import checkpoint_steps
from train.checkpoint.manifest import find_damage
from train.command import main
from train.ledger import read_ledger
from train.loop import run
from train.state_check import CORRUPT_STATE, CorruptState, StateCheck, check_deterministic
from train.step import TrainState

EVERY = 5


def begun(mesh):
    whole = NamedSharding(mesh, PartitionSpec())
    params = {"word": np.linspace(-1, 1, 64, dtype=np.float32).reshape(16, 4), "bias": np.ones(4, np.float32)}
    state = TrainState(np.int32(0), params, {"moment": np.zeros((16, 4), np.float32)})
    return jax.tree.map(lambda leaf: jax.device_put(leaf, whole), state)


@jax.jit
def _next(state, scale):
    params = jax.tree.map(lambda leaf: leaf * (1 - 1e-3 * scale), state.params)
    return TrainState(state.step + 1, params, state.opt_state)


def train_step(state, *, scale=1.0):
    return jax.jit(_next, donate_argnums=0)(state, scale), {}


def test_flips_on_one_of_eight_devices_are_found_within_the_steps():
    draw, mesh = np.random.default_rng(0), make_mesh()
    for _ in range(20):
        state, check = begun(mesh), StateCheck(EVERY)
        flip, name = int(draw.integers(1, 20)), ("word", "bias")[int(draw.integers(2))]
        device = jax.devices()[int(draw.integers(8))]
        bit = int(draw.integers(state.params[name].nbytes * 8))
        with pytest.raises(CorruptState, match=f"params/{name} on cpu device {device.id}: after step") as raised:
            for step in range(1, 40):
                if step == flip:
                    array = with_flipped_bit(state.params[name], bit, device)
                    state = state.replace(params={**state.params, name: array})
                state, _ = check.run(train_step, step, state)
        assert raised.value.exit_code == CORRUPT_STATE == 4
        assert flip <= step < flip + EVERY


def test_a_bit_that_is_flipped_on_every_device_or_the_only_one_breaks_the_chain():
    for count in (1, 8):
        state, check = begun(make_mesh(jax.devices()[:count])), StateCheck(1)
        for step in (1, 2):
            state, _ = check.run(train_step, step, state)
        word = state.params["word"]
        for device in jax.devices()[:count]:
            word = with_flipped_bit(word, 77, device)
        state = state.replace(params={**state.params, "word": word})
        with pytest.raises(CorruptState, match="params/word on .*: changed between step 2 and the next one"):
            check.run(train_step, 3, state)
        with pytest.raises(CorruptState, match="params/word on .*: changed between step 2"):
            check.check(state, 2)  # before a save


def test_a_step_with_another_result_the_second_time_is_found():
    state, check, calls = begun(make_mesh()), StateCheck(2), []

    def unsteady(state):
        calls.append(int(state.step) + 1)
        return train_step(state, scale=2.0 if calls == [1, 2, 2, 3, 4, 4] else 1.0)

    with pytest.raises(CorruptState, match="params/bias, params/word on .*: not the same when step 4 is computed"):
        for step in range(1, 5):
            state, _ = check.run(unsteady, step, state)


def test_the_memory_of_the_state_is_donated_and_off_means_off():
    for every, calls in ((0, 3), (3, 4)):
        state, check, counted = begun(make_mesh()), StateCheck(every), Mock(side_effect=train_step)
        for step in range(1, 4):
            old = state
            state, _ = check.run(counted, step, state)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
        assert counted.call_count == calls
        check.check(state, 3)


def test_gpus_need_deterministic_programs(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for flags, every in (("", 0), ("--xla_gpu_exclude_nondeterministic_ops=true", 5)):
        monkeypatch.setenv("XLA_FLAGS", flags)
        check_deterministic(every)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_exclude_nondeterministic_ops=false")
    with pytest.raises(ValueError, match="verify_every is 5, .* set the environment variable XLA_FLAGS=--xla_gpu_excl"):
        check_deterministic(5)


def test_a_run_with_a_flipped_bit_stops_before_it_is_saved_and_goes_on_as_it_was(finished, tmp_path, capsys):
    task = dataclasses.replace(finished.config.task, tokenizer=finished.folder / "tokenizer")
    settings = dataclasses.replace(finished.config.run, folder=tmp_path / "run", checkpoint_every=3, verify_every=9)
    config = dataclasses.replace(finished.config, task=task, run=settings)
    (tmp_path / "config.py").write_text("config = None")
    with (
        flipped(Flip(step=5, parameter=4, bit=100, device=jax.devices()[3])) as observation,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("train.command.load_config", lambda file: config)
        assert main([str(tmp_path / "config.py")]) == CORRUPT_STATE
    message = capsys.readouterr().err
    assert message.startswith(
        f"stopped: params/{observation.parameter} on cpu device 3: after step 6 not equal to the copies"
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    assert checkpoint_steps(checkpoints) == [3] and find_damage(checkpoints / "3") is None
    run(config)
    steps = finished.config.run.steps
    twice = f"| steps computed twice | {steps // 9 - 3 // 9} of {steps - 3} since the last start, none differed |"
    assert twice in (tmp_path / "run" / "summary.md").read_text()
    ours = {line.step: line.parameters for line in read_ledger(tmp_path / "run")}
    assert [ours[line.step] for line in read_ledger(finished.folder)] == [
        line.parameters for line in read_ledger(finished.folder)
    ]
