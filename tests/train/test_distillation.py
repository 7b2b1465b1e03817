"""Distillation: the terms against PyTorch, a teacher on any mesh, runs that resume, and what is refused."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxbert
from flaxbert.conversion.convert import convert
from flaxbert.conversion.shape_changes import ShapeChanges
from tests.train.test_loop import records, run_until, weights, with_run
from tests.train.test_step import bits_of_shards
from tests.trees import initial
from train.aot.estimate import compile_config
from train.config import Model
from train.distillation import Distillation
from train.distributed import MeshShape, Placement
from train.loop import make_model, run
from train.optim import make_optimizer
from train.step import compile_step, create_state, state_shardings
from train.tasks.question_answering import QuestionAnswering
from train.tasks.task import SoftTarget
from train.teacher import cosine_distance, load_teacher, soft_cross_entropy


def test_the_terms_are_those_of_pytorch():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 5)).astype(np.float32) * 3
    weight = np.array([1, 0, 1, 1, 0, 1])
    ours = soft_cross_entropy(SoftTarget(student, weight), SoftTarget(teacher, weight), temperature=2.0)
    kept = weight == 1
    a, b = torch.tensor(student[kept]) / 2, torch.tensor(teacher[kept]) / 2
    theirs = torch.nn.KLDivLoss(reduction="batchmean")(a.log_softmax(-1), b.softmax(-1)) * 4
    np.testing.assert_allclose(ours.mean, theirs.numpy(), rtol=1e-5)
    ours = cosine_distance(student[None], teacher[None], weight[None])
    theirs = torch.nn.CosineEmbeddingLoss()(a, b, torch.ones(len(a)))
    np.testing.assert_allclose(ours.mean, theirs.numpy(), rtol=1e-5)


def test_entries_of_a_padded_vocabulary_do_not_count():
    lowest = jnp.finfo(jnp.float32).min
    logits = jnp.array([[1.0, 2.0, lowest], [0.5, -1.0, lowest]])
    padded = soft_cross_entropy(
        SoftTarget(logits[:1], jnp.ones(1)), SoftTarget(logits[1:], jnp.ones(1)), temperature=1.5
    )
    cut = [SoftTarget(row[:, :2], jnp.ones(1)) for row in (logits[:1], logits[1:])]
    np.testing.assert_allclose(padded.mean, soft_cross_entropy(*cut, temperature=1.5).mean, rtol=1e-6)


@pytest.fixture
def distilled(masked_lm, finished):
    """A masked-LM run of a DistilBERT of the second layer of a finished run's model, which teaches it."""
    student = masked_lm.run.folder.parent / "student"
    teacher = finished.folder / "model"
    convert(teacher, student, head="DistilBertForMaskedLM", changes=ShapeChanges(keep_layers=[1]))
    settings = Distillation(teacher=teacher, cosine_weight=1.0)
    config = dataclasses.replace(masked_lm, model=Model(pretrained=student), distillation=settings)
    return with_run(config, steps=3, checkpoint_every=2, log_every=1)


@pytest.mark.slow
def test_a_distilled_run_resumes_bit_for_bit_and_keeps_no_teacher(distilled, monkeypatch, tmp_path):
    unbroken = run(distilled)
    broken = with_run(distilled, folder=tmp_path / "broken")
    run_until(broken, 3, monkeypatch)
    run(broken)
    chex.assert_trees_all_equal(weights(tmp_path / "broken"), weights(unbroken))
    terms = [{k: r[k] for k in ("hard_loss", "soft_loss", "cosine_loss", "loss")} for r in records(unbroken, "train")]
    assert all(value > 0 for step in terms for value in step.values())
    assert terms[0]["loss"] == pytest.approx(sum(terms[0].values()) - terms[0]["loss"], rel=1e-6)
    saved = flaxbert.from_pretrained(unbroken)[0]  # of the last checkpoint
    assert type(saved).__name__ == "DistilBertForMaskedLM" and saved.config.num_hidden_layers == 1
    assert "teacher's weights" in json.loads((unbroken / "inputs.json").read_text())
    moved = tmp_path / "teacher"
    shutil.copytree(distilled.distillation.teacher, moved)
    again = dataclasses.replace(distilled, distillation=dataclasses.replace(distilled.distillation, teacher=moved))
    run(again)  # the same content elsewhere
    (tensors := flaxbert.from_pretrained(moved))[1]["predictions"]["bias"] += 1
    flaxbert.save_pretrained(moved, *tensors)
    with pytest.raises(ValueError, match="began with other data.*\n.*teacher's weights: SHA-256"):
        run(again)


def test_every_mesh_has_the_terms_of_one_device_and_skips_updates_that_are_not_finite(distilled):
    results = []
    for mesh, devices, steps in ((MeshShape(), 1, 1), (MeshShape(fsdp=2, tensor=2), 8, 2)):
        placement = Placement.of(mesh, jax.devices()[:devices])
        task = distilled.task.prepare(distilled)
        student, params = make_model(dataclasses.replace(distilled, model=_without_dropout(distilled)), task, placement)
        teacher = load_teacher(distilled, task, student, placement)
        optimizer = make_optimizer(distilled.optim, 10)
        shardings, fixed = state_shardings(student, optimizer, placement), placement.parameters(teacher.model)
        alike = jax.tree.map(
            lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted, leaf.ndim), teacher.params, fixed
        )
        assert all(jax.tree.leaves(alike))
        step = compile_step(
            lambda fixed, params, batch, key, loss=teacher.loss: loss(fixed, params, batch, None),
            optimizer,
            placement,
            shardings,
            gradient_accumulation_steps=steps,
            fixed=(fixed,),
        )
        state = create_state(student, optimizer, shardings, seed=0, params=params)
        for number in range(2):
            state, metrics = step(state, placement.batch(task.train[number]), np.uint32(0), teacher.params)
        results.append(jax.device_get((metrics["terms"], state.params)))
    # On the mesh of the last program: a teacher whose output is not finite teaches nothing.
    before = bits_of_shards(state)
    damaged = jax.tree.map(jnp.copy, teacher.params)
    damaged["predictions"]["bias"] = damaged["predictions"]["bias"].at[3].set(jnp.nan)
    state, metrics = step(state, placement.batch(task.train[2]), np.uint32(0), jax.device_put(damaged, fixed))
    assert np.isnan(metrics["loss"])
    assert {path for path, bits in bits_of_shards(state).items() if bits != before[path]} == {
        (".step", device.id) for device in jax.devices()
    }
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-6)


def _without_dropout(config):
    return dataclasses.replace(config.model, dropout=0.0)


def saved_model(config, folder, **changes):
    task = config.task.prepare(config)
    model = task.architecture(task.config.replace(**changes))
    flaxbert.save_pretrained(folder, model, initial(model))
    task.tokenizer.save(folder, max_length=32)
    return folder


def answers(classification, folder):
    """The same run with questions and answers of the same words."""
    question = {"id": "1", "question": "delta", "answers": [{"text": "beta gamma", "answer_start": 6}]}
    article = {"title": "a", "paragraphs": [{"context": "alpha beta gamma zeta", "qas": [question]}]}
    (folder / "squad.json").write_text(json.dumps({"data": [article]}))
    task = QuestionAnswering(
        train=str(folder / "squad.json"),
        tokenizer=classification.task.tokenizer,
        max_length=16,
        max_query=4,
        window_step=4,
    )
    return dataclasses.replace(classification, task=task)


@pytest.mark.parametrize("task", ["texts", "answers"])
def test_a_student_that_equals_its_teacher_has_only_the_loss_of_the_labels(task, classification, tmp_path):
    config = answers(classification, tmp_path) if task == "answers" else classification
    settings = Distillation(saved_model(config, tmp_path / "teacher"), hard_weight=0.25, cosine_weight=1)
    config = dataclasses.replace(config, distillation=settings)
    task, placement = config.task.prepare(config), Placement.of(MeshShape(), jax.devices()[:1])
    student = task.architecture(task.config, **config.model.attributes)
    teacher = load_teacher(config, task, student, placement)
    batch = task.train[0]
    terms = teacher.loss(teacher.params, teacher.params, batch, None).terms
    names = task.loss_terms or ("hard_loss",)
    assert teacher.loss_terms == (*names, "soft_loss", "cosine_loss")
    hard = np.atleast_1d(task.loss(student, teacher.params, batch, None).terms)
    np.testing.assert_allclose(terms, [*hard * 0.25, 0, 0], rtol=1e-6, atol=1e-6)
    assert len(terms) == len(teacher.loss_terms)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"id2label": ("short", "long")}, {}, "the teacher has the labels .*give --task.labels in the teacher's order"),
        ({"hidden_size": 64}, {"cosine_weight": 1.0}, "the teacher's width is 64 and the student's 32"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(changes, settings, message, classification, tmp_path):
    teacher = saved_model(classification, tmp_path / "teacher", **changes)
    config = dataclasses.replace(classification, distillation=Distillation(teacher, **settings))
    with pytest.raises(ValueError, match=message):
        run(config)
    assert not config.run.folder.exists()


def test_a_teacher_without_the_head_or_with_other_tokens_is_refused(classification, finished, tmp_path):
    teacher = finished.folder / "model"
    config = dataclasses.replace(classification, distillation=Distillation(teacher))
    with pytest.raises(ValueError, match="the teacher has another vocabulary than the student"):
        run(config)
    own = saved_model(classification, tmp_path / "teacher")
    convert(own, tmp_path / "encoder", head="BertModel")
    config = dataclasses.replace(classification, distillation=Distillation(tmp_path / "encoder"))
    with pytest.raises(ValueError, match="no trained head of BertForSequenceClassification: it lacks classifier.bias"):
        run(config)
    with pytest.raises(ValueError, match="distillation is not estimated"):
        compile_config(config, Placement.of(MeshShape()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.5}, "temperature is 0.5; it must be at least 1"),
        ({"hard_weight": -1}, "hard_weight is -1; it must be at least 0"),
        ({"soft_weight": 0}, "soft_weight and cosine_weight are 0"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**settings)
