"""Length-adaptive training: draws, the loss against PyTorch, meshes, resumed runs, compiles, and what is refused."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
import torch

import flaxbert
from tests.flaxbert.length_adaptive import AdaptiveEncoder
from tests.flaxbert.parity import foreign, saved
from tests.train.test_loop import records, run_until, weights, with_run
from train.aot.estimate import compile_config
from train.command import parse_flags
from train.config import Model
from train.distillation import Distillation
from train.distributed import MeshShape, Placement
from train.length_adaptation import LengthAdaptation
from train.loop import make_model, run
from train.optim import make_optimizer
from train.sandwich import Sandwiches, SubModel, divergence, draw_sandwiches, make_sandwiches, smallest_submodel
from train.step import compile_step, create_state, state_shardings
from train.tasks.task import SoftTarget


def test_the_smallest_submodel_has_the_published_lengths():
    published = (308, 247, 198, 159, 128, 103, 83, 67, 54, 44, 36, 29)
    assert smallest_submodel(12).lengths(384, length_drop=0.2) == published
    assert smallest_submodel(12).lengths(4, length_drop=0.9) == (2,) * 12
    assert smallest_submodel(2).lengths(1, length_drop=0.2) == (1, 1)
    assert SubModel((1, 3), (0.0,) * 5).lengths(100, length_drop=0.2) == (100, 80, 80, 64, 64)


def test_draws_stay_within_their_bounds_and_follow_the_seed():
    settings = LengthAdaptation(enabled=True, sandwiches=200, random_submodels=1)
    sandwiches = draw_sandwiches(settings, 4, seed=1)
    assert sandwiches == draw_sandwiches(settings, 4, seed=1) != draw_sandwiches(settings, 4, seed=2)
    first = [sandwich.submodels[1].lengths(10, length_drop=0.2)[0] for sandwich in sandwiches]
    runs = [0 in sandwich.submodels[1].layers for sandwich in sandwiches]
    assert set(np.array(first)[runs]) == {8, 9, 10} and set(np.array(first)[~np.array(runs)]) == {10}
    models = [layers for s in sandwiches for layers in (s.layers, *(submodel.layers for submodel in s.submodels))]
    assert min(map(len, models)) >= 1 and np.mean([len(layers) for layers in models]) / 4 == pytest.approx(
        0.8, abs=0.03
    )
    whole = dataclasses.replace(settings, layer_drop_in_full=False)
    assert {sandwich.layers for sandwich in draw_sandwiches(whole, 4, seed=1)} == {(0, 1, 2, 3)}


def test_divergences_are_those_of_pytorch():
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(2, 5, 3)).astype(np.float32)
    weight, kept = np.array([1.0, 0, 1, 1, 1], np.float32), [0, 2, 3, 4]
    sub, full = (torch.tensor(logits[kept]) for logits in ours)
    targets = [SoftTarget(logits, weight) for logits in ours]
    kl = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)
    reverse = divergence(*targets, reverse=True, problem_type=None).mean
    np.testing.assert_allclose(reverse, kl(full.log_softmax(-1), sub.log_softmax(-1)), rtol=1e-5)
    forward = divergence(*targets, reverse=False, problem_type=None).mean
    np.testing.assert_allclose(forward, kl(sub.log_softmax(-1), full.log_softmax(-1)), rtol=1e-5)
    squares = divergence(*targets, reverse=True, problem_type="regression").mean
    np.testing.assert_allclose(squares, torch.nn.MSELoss()(sub, full), rtol=1e-5)
    p, q = (torch.distributions.Bernoulli(logits=logits) for logits in (sub, full))
    labels = divergence(*targets, reverse=True, problem_type="multi_label_classification").mean
    np.testing.assert_allclose(labels, torch.distributions.kl_divergence(p, q).mean(), rtol=1e-5)


def test_loss_and_gradients_are_those_of_pytorch(adapted, tmp_path):
    reference = saved("BertForSequenceClassification", tmp_path / "model", num_labels=2, vocab_size=11)
    settings = dataclasses.replace(adapted.length_adaptation, random_submodels=1)
    config = dataclasses.replace(adapted, model=Model(), length_adaptation=settings)
    task = config.task.prepare(config)
    model, params = flaxbert.from_pretrained(tmp_path / "model")
    task = dataclasses.replace(task, config=model.config.replace(problem_type="single_label_classification"))
    sandwiches = make_sandwiches(config, task, model)
    batch, sandwich = task.train[0], sandwiches.all[0]
    rows = batch["weight"] == 1  # the others fill the batch up
    total, gradients = jax.jit(jax.value_and_grad(lambda params: sandwiches.loss(sandwich, params, batch, None).mean))(
        params
    )

    inputs = {name: torch.from_numpy(batch[name][rows]).long() for name in model.input_names}

    def logits(layers, lengths):
        encoder = AdaptiveEncoder(
            reference.bert, mask=inputs["attention_mask"], length_config=lengths, layer_config=layers, keep_cls=True
        )
        reference.bert.encoder.forward = encoder
        result = reference(**inputs).logits
        assert min(encoder.gaps, default=1) > 1e-6, "scores are tied: take another seed"
        return result

    full = logits(sandwich.layers, None)
    wanted = torch.nn.functional.cross_entropy(full, torch.from_numpy(batch["labels"][rows]).long())
    teacher = full.detach().log_softmax(-1)
    for submodel in sandwich.submodels:
        log_p = logits(submodel.layers, submodel.lengths(batch["input_ids"].shape[1], length_drop=0.5)).log_softmax(-1)
        wanted = wanted + (log_p.exp() * (log_p - teacher)).sum(-1).mean()
    wanted = wanted / 3
    wanted.backward()
    np.testing.assert_allclose(total, wanted.detach(), rtol=1e-5)
    ours = foreign(model, gradients)
    for name, parameter in reference.named_parameters():
        theirs = np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
        np.testing.assert_allclose(ours[name], theirs, rtol=0, atol=1e-6 + 1e-4 * np.abs(theirs).max(), err_msg=name)


@pytest.fixture
def adapted(classification):
    """A run that adapts the model of `classification`; batches of one length, two sandwiches."""
    settings = LengthAdaptation(enabled=True, sandwiches=2, length_drop=0.5, random_submodels=0)
    # Of large weights, so that the sub-models differ from the full model.
    model = dataclasses.replace(classification.model, sizes=classification.model.sizes.replace(initializer_range=0.5))
    config = dataclasses.replace(classification, length_adaptation=settings, model=model)
    return with_run(config, epochs=None, steps=4, checkpoint_every=2, log_every=1, seed=1)


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_compiles_each_sandwich_once(adapted, monkeypatch, tmp_path):
    traced = []
    with monkeypatch.context() as patch:
        loss = Sandwiches.loss
        patch.setattr(
            Sandwiches, "loss", lambda self, *arguments: traced.append(arguments[0]) or loss(self, *arguments)
        )
        unbroken = run(adapted)
    assert len(traced) == len(set(traced)) == 2
    broken = with_run(adapted, folder=tmp_path / "broken")
    run_until(broken, 3, monkeypatch)
    run(broken)
    chex.assert_trees_all_equal(weights(tmp_path / "broken"), weights(unbroken))
    terms = [{k: r[k] for k in ("full_loss", "smallest_loss", "loss")} for r in records(unbroken, "train")]
    assert max(step["smallest_loss"] for step in terms) > 1e-6
    assert terms[0]["loss"] == pytest.approx(sum(terms[0].values()) - terms[0]["loss"], rel=1e-6)


@pytest.mark.slow
def test_every_mesh_has_the_terms_of_one_device(adapted):
    results = []
    for mesh, devices, steps in ((MeshShape(), 1, 1), (MeshShape(fsdp=2, tensor=2), 8, 2)):
        placement = Placement.of(mesh, jax.devices()[:devices])
        task = adapted.task.prepare(adapted)
        model, _ = make_model(adapted, task, placement)
        sandwiches = make_sandwiches(adapted, task, model)
        optimizer = make_optimizer(adapted.optim, 10)
        shardings = state_shardings(model, optimizer, placement)
        step = compile_step(sandwiches.losses[0], optimizer, placement, shardings, gradient_accumulation_steps=steps)
        state = create_state(model, optimizer, shardings, seed=0)
        state, metrics = step(state, placement.batch(task.train[2]), np.uint32(0))  # of 8 rows, 2 are empty
        results.append(jax.device_get((metrics["terms"], state.params)))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_adapted_is_refused(adapted, masked_lm, tmp_path):
    def refused(config, message, **task):
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, **task))
        with pytest.raises(ValueError, match=message):
            run(config)
        assert not config.run.folder.exists()

    refused(adapted, "packed is True, .*--task.no-packed", packed=True)
    refused(
        dataclasses.replace(masked_lm, length_adaptation=adapted.length_adaptation),
        "Pretraining cannot be length-adaptive",
    )
    sizes = adapted.model.sizes.replace(length_config=(8, 4))
    refused(
        dataclasses.replace(adapted, model=dataclasses.replace(adapted.model, sizes=sizes)),
        "config.json has .*length_config.*set them to null",
    )
    task = adapted.task.prepare(adapted)
    model = task.architecture(task.config)
    both = dataclasses.replace(adapted, distillation=Distillation(tmp_path))
    with pytest.raises(ValueError, match="one model cannot have both"):
        make_sandwiches(both, task, model)
    with pytest.raises(ValueError, match="length-adaptive training is not estimated; give --no-length-adaptation"):
        compile_config(adapted, Placement.of(MeshShape()))
    assert not parse_flags(adapted, ["--length-adaptation.no-enabled"]).length_adaptation.enabled


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length_drop": 1.0}, "length_drop is 1.0; allowed: at least 0 and less than 1"),
        ({"layer_drop": -0.1}, "layer_drop is -0.1"),
        ({"random_submodels": -1}, "random_submodels is -1; allowed: 0 to 64"),
        ({"sandwiches": 0}, "sandwiches is 0; allowed: 1 to 1024"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LengthAdaptation(**settings)
