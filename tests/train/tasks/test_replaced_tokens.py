"""ELECTRA's pretraining: what the discriminator gets, the loss, shared embeddings, resuming, devices, both exports."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import flaxbert
from flaxbert import losses
from flaxbert.conversion.convert import convert
from flaxbert.families.electra import ElectraConfig
from flaxbert.losses import IGNORE
from tests.train import corpora
from tests.train.test_loop import records, run_until, with_run
from tests.train.test_step import bits_of_shards
from tests.trees import initial
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.data.pretraining.preparation import Preparation, prepare_store
from train.distillation import Distillation
from train.distributed import MeshShape, Placement
from train.electra_pair import GENERATOR, ElectraPair, generator_sizes, replace_tokens, run_pair
from train.loop import make_model, run
from train.optim import Optim, make_optimizer
from train.step import compile_step, create_state, state_shardings
from train.tasks.replaced_tokens import ReplacedTokens
from train.teacher import load_teacher

SIZES = ElectraConfig(
    vocab_size=205,
    embedding_size=12,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
)


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(corpora.lines(corpora.documents(60))))
    corpora.tokenizer().save(tmp_path / "words", max_length=40)
    store = tmp_path / "store"
    prepare_store(Preparation((str(text),), store, tokenizer=tmp_path / "words", workers=1, lines="sentences"))
    settings = Run(folder=tmp_path / "run", batch_size=8, steps=4, log_every=2)
    task = ReplacedTokens(text=str(store), max_length=32, generator_size=0.5)
    return Config(task, settings, Model(sizes=SIZES), Optim(learning_rate=1e-3))


def made(task, **changes):
    model = task.architecture(task.config, **changes)
    return model, initial(model)


def test_tokens_are_drawn_at_the_masked_positions_alone():
    batch = {
        "input_ids": jnp.array([[2, 4, 11, 4, 3, 0], [2, 10, 4, 3, 0, 0]]),
        "attention_mask": jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]),
        "masked_lm_positions": jnp.array([[1, 3], [2, 0]]),
        "masked_lm_labels": jnp.array([[20, 21], [22, IGNORE]]),
    }
    corrupted, labels = replace_tokens(batch, jnp.array([[20, 30], [31, 32]]))
    assert corrupted.tolist() == [[2, 20, 11, 30, 3, 0], [2, 10, 31, 3, 0, 0]]
    assert labels.tolist() == [[0, 0, 0, 1, 0, IGNORE], [0, 0, 1, 0, IGNORE, IGNORE]]


@pytest.mark.parametrize("row_length", [None, 64])
def test_the_loss_is_that_of_both_models_in_pytorch(config, row_length, tmp_path):
    task = dataclasses.replace(config.task, row_length=row_length).prepare(config)
    model, params = made(task)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    batch = {name: jnp.asarray(values) for name, values in task.train[0].items()}
    loss = task.loss(model, params, batch, None)
    outputs = run_pair(model, params, batch, None)
    np.testing.assert_allclose(loss.sum[0], losses.masked_lm(outputs.tokens, batch["masked_lm_labels"]).sum, rtol=1e-6)
    assert loss.weight[1] == (outputs.labels != IGNORE).sum() and (outputs.labels == 1).sum() > 0
    if row_length:
        return
    for name, (part, own) in task.models(model, params, {}).items():
        flaxbert.save_pretrained(tmp_path / name, part, own)
    generator = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / GENERATOR)
    discriminator = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "model")
    ids, mask = (torch.tensor(np.asarray(batch[name])) for name in ("input_ids", "attention_mask"))
    labels, places = np.asarray(batch["masked_lm_labels"]), np.asarray(batch["masked_lm_positions"])
    word_labels = np.full(ids.shape, IGNORE)
    rows, slots = np.nonzero(labels != IGNORE)
    word_labels[rows, places[rows, slots]] = labels[rows, slots]
    corrupted, _ = replace_tokens(batch, jax.random.categorical(jax.random.key(0), outputs.tokens))
    with torch.no_grad():
        words = generator(ids, attention_mask=mask, labels=torch.tensor(word_labels)).loss
        found = discriminator(
            torch.tensor(np.asarray(corrupted)), attention_mask=mask, labels=torch.tensor(np.asarray(outputs.labels))
        ).loss
    np.testing.assert_allclose(loss.sum / loss.weight, [float(words), 50.0 * float(found)], rtol=1e-5)


def test_embeddings_are_shared_and_draws_have_no_gradient(config):
    task = config.task.prepare(config)
    model, params = made(task)
    assert isinstance(model, ElectraPair) and set(params[GENERATOR]["electra"]["embeddings"]) == {"projection"}
    batch = {name: jnp.asarray(values) for name, values in task.train[0].items()}

    def term(number):
        return jax.jit(jax.grad(lambda params: task.loss(model, params, batch, None).terms[number]))(params)

    words, replaced = term(0), term(1)
    table = ("electra", "embeddings", "word", "embedding")
    for gradient in (words, replaced):
        leaf = gradient
        for key in table:
            leaf = leaf[key]
        assert np.any(leaf)
    assert not any(map(np.any, jax.tree.leaves(replaced[GENERATOR])))
    assert not any(map(np.any, jax.tree.leaves(words["discriminator"])))


def test_draws_follow_the_key(config):
    sizes = config.model.sizes.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    task = config.task.prepare(dataclasses.replace(config, model=Model(sizes=sizes)))
    model, params = made(task)
    batch = {name: jnp.asarray(values) for name, values in task.train[0].items()}
    run_with = jax.jit(lambda seed: run_pair(model, params, batch, jax.random.key(seed)).replaced)
    one, other, again = map(run_with, (1, 2, 1))  # without dropout only other draws give other logits
    assert np.any(one != other)
    np.testing.assert_array_equal(one, again)


def test_an_update_is_skipped_if_either_model_has_a_loss_that_is_not_finite(config):
    task, placement = config.task.prepare(config), Placement.of(MeshShape(), jax.devices()[:2])
    model = task.architecture(task.config, **config.model.attributes)

    def poisoned(params, batch, key):
        loss = task.loss(model, params, {name: batch[name] for name in batch if name != "poison"}, key)
        return losses.Loss(loss.sum * (1 + jnp.sum(batch["poison"], axis=0)), loss.weight)

    optimizer = make_optimizer(dataclasses.replace(config.optim, warmup=0.0), 10)
    shardings = state_shardings(model, optimizer, placement)
    step = compile_step(poisoned, optimizer, placement, shardings)
    state = create_state(model, optimizer, shardings, seed=0)
    for number, term in enumerate((None, 0, 1, None)):
        poison = np.zeros((8, 2), np.float32)
        if term is not None:
            poison[5, term] = np.nan  # a row of the second device
        before = bits_of_shards(state)
        state, metrics = step(state, placement.batch({**task.train[number], "poison": poison}), np.uint32(0))
        assert np.isfinite(metrics["terms"]).tolist() == [term != 0, term != 1]
        changed = {path for path, bits in bits_of_shards(state).items() if bits != before[path]}
        assert {name for name, _ in changed} == {".step"} if term is not None else len(changed) > 2


def test_sizes_of_the_generator():
    sizes = generator_sizes(ElectraConfig(), 0.25)
    assert (sizes.hidden_size, sizes.num_attention_heads, sizes.intermediate_size) == (64, 1, 256)
    assert sizes.embedding_size == 128 and sizes.num_hidden_layers == 12


@pytest.mark.slow  # test_loop.py resumes runs, of another task
def test_a_run_resumes_bit_for_bit(config, monkeypatch, tmp_path):
    unbroken = run(config)
    broken = with_run(config, folder=tmp_path / "b", checkpoint_every=2)
    run_until(broken, 3, monkeypatch)
    run(broken)
    for name in ("model", GENERATOR):
        one, other = (load_file(folder / name / "model.safetensors") for folder in (unbroken, broken.run.folder))
        chex.assert_trees_all_equal(one, other)


def test_a_run_exports_both_models(config, tmp_path, caplog):
    unbroken = run(config)
    model, report = transformers.ElectraForPreTraining.from_pretrained(unbroken / "model", output_loading_info=True)
    assert model.config.embedding_size == 12 and not any(report.values())
    generator, report = transformers.ElectraForMaskedLM.from_pretrained(unbroken / GENERATOR, output_loading_info=True)
    assert generator.config.hidden_size == 16 and not any(report.values())
    (last,) = records(unbroken, "eval")
    assert np.isfinite(last["loss"]) and 0 <= last["replaced_recall"] <= 1
    done = convert(unbroken, tmp_path / "converted")
    assert done.head == "ElectraForPreTraining" and "left out, because only training needs it: generator" in caplog.text
    chex.assert_trees_all_equal(
        *(load_file(folder / "model.safetensors") for folder in (unbroken / "model", tmp_path / "converted"))
    )
    # A further run starts from the discriminator, with a new generator.
    further = with_run(dataclasses.replace(config, model=Model(pretrained=unbroken / "model")), folder=tmp_path / "c")
    model, params = make_model(further, further.task.prepare(further), Placement.of(further.mesh))
    np.testing.assert_array_equal(
        params["electra"]["layers"]["up"]["kernel"][0].T,
        load_file(unbroken / "model" / "model.safetensors")["electra.encoder.layer.0.intermediate.dense.weight"],
    )
    assert isinstance(model, ElectraPair) and GENERATOR in params


@pytest.mark.slow  # test_meshes.py trains on meshes
def test_eight_devices_train_as_one_does(config, tmp_path):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))
    one = run(config)
    mesh = MeshShape(data=4, tensor=2)
    several = run(dataclasses.replace(with_run(config, folder=tmp_path / "b"), mesh=mesh))
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, several))
    for name, leaf in ours.items():
        np.testing.assert_allclose(theirs[name], leaf, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": Segments.NEXT_SENTENCE}, "ELECTRA has no such loss: give full-sentences or stream"),
        ({"generator_size": 1.5}, "generator_size is 1.5; it must be above 0, and 1 at most"),
        ({"discriminator_weight": 0.0}, "discriminator_weight is 0.0; it must be above 0"),
    ],
)
def test_impossible_settings(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config.task, **changes)


def test_a_teacher_is_refused(config, tmp_path):
    given = dataclasses.replace(config, distillation=Distillation(teacher=tmp_path / "nowhere"))
    task = given.task.prepare(given)
    with pytest.raises(ValueError, match="ReplacedTokens has no soft targets; leave --distillation.teacher out"):
        load_teacher(given, task, made(task)[0], Placement.of(given.mesh))


def test_a_model_of_another_family_is_refused(config):
    given = dataclasses.replace(config, model=Model(sizes=flaxbert.BertConfig.tiny()))
    with pytest.raises(ValueError, match="'bert' has no model for replaced-token detection here"):
        given.task.prepare(given)
