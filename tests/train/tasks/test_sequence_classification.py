"""MRPC from MiniLM: every step's loss, and at the end every prediction, is that of PyTorch's `transformers`."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers

from flaxbert import save_pretrained
from train.benchmark import torch_classifier
from train.command import load_config
from train.distributed import Placement
from train.evaluate import DEV
from train.optim import make_optimizer
from train.step import compile_step, create_state, state_shardings

SEED = np.uint32(0)
ROOT = Path(__file__).parents[3]


@pytest.mark.slow  # ten minutes: 345 steps of a real model, twice; at most 6.6e-6 apart (2026-11-22)
def test_the_loss_curve_and_the_predictions_of_pytorch(data_dir, minilm, tmp_path):
    config = load_config(ROOT / "configs" / "mrpc.py")
    files = {name: str(data_dir / "tasks" / "glue" / "MRPC" / f"{name}.tsv") for name in ("train", "dev")}
    model_settings = dataclasses.replace(config.model, dropout=0.0, pretrained=minilm)
    config = dataclasses.replace(
        config,
        task=dataclasses.replace(config.task, packed=False, **files),
        model=model_settings,
        run=dataclasses.replace(config.run, folder=tmp_path / "run"),
    )
    task = config.task.prepare(config)
    total_steps = config.run.total_steps(task.steps_per_epoch)
    placement = Placement.of(config.mesh, jax.devices()[:1])
    how = {"strict": False, "config": task.config, "key": jax.random.key(0), **config.model.attributes}
    model, params = task.architecture.from_pretrained(minilm, **how)
    save_pretrained(tmp_path / "start", model, params)

    optimizer = make_optimizer(config.optim, total_steps)
    shardings = state_shardings(model, optimizer, placement)
    state = create_state(model, optimizer, shardings, seed=0, params=params)
    step = compile_step(lambda p, b, key: task.loss(model, p, b, None), optimizer, placement, shardings)
    ours = []
    for number in range(total_steps):
        state, metrics = step(state, placement.batch(task.train[number]), SEED)
        ours.append(metrics["loss"])
    measure = jax.jit(lambda params, batch: task.eval_step(model, params, batch).outputs)
    dev = task.evaluations[DEV]
    probabilities = dev.by_example([np.asarray(measure(state.params, batch)) for batch in dev])

    reference = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "start")
    theirs = torch_classifier.train_torch(reference, config, task, total_steps)
    apart = np.abs(np.array(jax.device_get(ours)) - theirs)
    print(f"losses of {total_steps} steps are at most {apart.max():.2e} apart")
    assert apart.max() < 1e-3
    assert np.mean(theirs[-30:]) < np.mean(theirs[:30]) - 0.15  # and both have learnt something
    said = torch_classifier.predictions(reference, task, DEV)
    np.testing.assert_array_equal(np.argmax(probabilities, axis=1), said)
