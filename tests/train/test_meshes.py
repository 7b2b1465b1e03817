"""Any mesh computes what one device does; and where every parameter and moment lives."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flaxbert import BertConfig, BertForPreTraining, BertForSequenceClassification, Remat, losses
from tests.trees import by_path, initial
from train.distributed import MeshShape, Placement
from train.optim import Optim, make_optimizer
from train.step import compile_step, create_state, state_shapes, state_shardings

CONFIG = BertConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=8,
    intermediate_size=64,
    max_position_embeddings=16,
    id2label=("a", "b", "c"),
)
MESHES = {
    "8x1x1": MeshShape(),
    "1x8x1": MeshShape(fsdp=8),
    "2x2x2": MeshShape(fsdp=2, tensor=2),
    "1x1x8": MeshShape(tensor=8),
    "4x1x2": MeshShape(tensor=2),
}
ROWS, LENGTH, STEPS = 16, 11, 20
SEED = np.uint32(0)


def pretraining_batch(generator):
    ids = generator.integers(5, 96, (ROWS, LENGTH)).astype(np.int32)
    # Rows with very different numbers of labels: a mean of means would differ from the mean.
    labelled = generator.random((ROWS, LENGTH)) < np.linspace(0.05, 0.9, ROWS)[:, None]
    following = np.where(np.arange(ROWS) < 9, generator.integers(0, 2, ROWS), losses.IGNORE).astype(np.int32)
    return inputs(ids, generator) | {
        "labels": np.where(labelled, ids, losses.IGNORE).astype(np.int32),
        "next_sentence_label": following,
    }


def classification_batch(generator):
    ids = generator.integers(5, 96, (ROWS, LENGTH)).astype(np.int32)
    weight = (np.arange(ROWS) < 13).astype(np.float32)  # the last rows only fill up
    return inputs(ids, generator) | {"labels": generator.integers(0, 3, ROWS).astype(np.int32), "weight": weight}


def inputs(ids, generator):
    mask = (np.arange(LENGTH) < generator.integers(3, LENGTH + 1, (ROWS, 1))).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask}


def pretraining_loss(out, batch):
    logits = out.prediction_logits, out.seq_relationship_logits
    return losses.pretraining(*logits, batch["labels"], batch["next_sentence_label"])


def classification_loss(out, batch):
    how = {"problem_type": "single_label_classification", "weights": batch["weight"]}
    return losses.sequence_classification(out.logits, batch["labels"], **how)


TASKS = {
    "pretraining": (BertForPreTraining, pretraining_batch, pretraining_loss),
    "classification": (BertForSequenceClassification, classification_batch, classification_loss),
}


def trained(task, placement, *, gradient_accumulation_steps=1, remat=Remat.NONE):
    """The first step's gradients (clipped), the losses of all steps, and the last state."""
    architecture, make_batch, loss_of = TASKS[task]
    model = architecture(CONFIG, remat=remat)

    def loss_function(params, batch, _):
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return loss_of(model.apply({"params": params}, **given), batch)

    optimizer = make_optimizer(Optim(learning_rate=1e-3), STEPS)
    shardings = state_shardings(model, optimizer, placement)
    state = create_state(model, optimizer, shardings, seed=0, params=fresh(architecture))
    batches = [placement.batch(make_batch(np.random.default_rng(number))) for number in range(STEPS)]
    step = compile_step(
        loss_function, optimizer, placement, shardings, gradient_accumulation_steps=gradient_accumulation_steps
    )
    # Once, and it refuses a state that does not come back where it was; optimising it for 20 steps takes longer.
    compiled = step.lower(state, batches[0], SEED).compile()
    found, gradients = [], None
    for batch in batches:
        state, metrics = compiled(state, batch, SEED)
        found.append(float(metrics["loss"]))
        # Adam's first moment after one step is a tenth of the gradient.
        gradients = gradients or by_path(jax.device_get(moments(state)[0]))
    return gradients, found, state


@functools.cache
def fresh(architecture):
    model = architecture(CONFIG)
    return initial(model)


def moments(state):
    """Adam's two, as trees of parameters."""
    (adam,) = [part for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(part)]
    return adam.mu, adam.nu


def is_adam(part):
    return hasattr(part, "mu")


@functools.cache
def on_one_device(task):
    return trained(task, Placement.of(MeshShape(), jax.devices()[:1]))[:2]


@pytest.mark.parametrize(
    "task, mesh, gradient_accumulation_steps, remat",
    [
        pytest.param("pretraining", "8x1x1", 2, Remat.NONE, marks=pytest.mark.slow),
        pytest.param("pretraining", "1x8x1", 1, Remat.FULL, marks=pytest.mark.slow),
        ("pretraining", "2x2x2", 4, Remat.DOTS),
        pytest.param("pretraining", "1x1x8", 1, Remat.NONE, marks=pytest.mark.slow),
        pytest.param("pretraining", "4x1x2", 2, Remat.NONE, marks=pytest.mark.slow),
        pytest.param("classification", "8x1x1", 1, Remat.NONE, marks=pytest.mark.slow),
        pytest.param("classification", "1x8x1", 2, Remat.NONE, marks=pytest.mark.slow),
        pytest.param("classification", "2x2x2", 1, Remat.NONE, marks=pytest.mark.slow),
        pytest.param("classification", "1x1x8", 4, Remat.FULL, marks=pytest.mark.slow),
        pytest.param("classification", "4x1x2", 1, Remat.DOTS, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_trains_as_one_device_does(task, mesh, gradient_accumulation_steps, remat):
    wanted, wanted_losses = on_one_device(task)
    gradients, found, _ = trained(
        task, Placement.of(MESHES[mesh]), gradient_accumulation_steps=gradient_accumulation_steps, remat=remat
    )
    np.testing.assert_allclose(found, wanted_losses, rtol=1e-5)
    assert gradients.keys() == wanted.keys()
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for path, gradient in gradients.items():
        # The exact gradient of a key's bias is 0: its largest entry is rounding too.
        allowed = 1e-7 * largest if path.endswith("key/bias") else 1e-5 * np.abs(wanted[path]).max()
        assert np.abs(gradient - wanted[path]).max() <= allowed, path


# On a mesh with all three axes; layers are stacked on the first axis.
LIVES = {
    "bert/embeddings/norm/bias": PartitionSpec(None),
    "bert/embeddings/norm/scale": PartitionSpec(None),
    "bert/embeddings/position/embedding": PartitionSpec(None, "fsdp"),
    "bert/embeddings/token_type/embedding": PartitionSpec(None, "fsdp"),
    "bert/embeddings/word/embedding": PartitionSpec("tensor", "fsdp"),
    "bert/layers/attention/key/bias": PartitionSpec(None, "tensor", None),
    "bert/layers/attention/key/kernel": PartitionSpec(None, "fsdp", "tensor", None),
    "bert/layers/attention/output/bias": PartitionSpec(None, "fsdp"),
    "bert/layers/attention/output/kernel": PartitionSpec(None, "tensor", None, "fsdp"),
    "bert/layers/attention/query/bias": PartitionSpec(None, "tensor", None),
    "bert/layers/attention/query/kernel": PartitionSpec(None, "fsdp", "tensor", None),
    "bert/layers/attention/value/bias": PartitionSpec(None, "tensor", None),
    "bert/layers/attention/value/kernel": PartitionSpec(None, "fsdp", "tensor", None),
    "bert/layers/attention_norm/bias": PartitionSpec(None, None),
    "bert/layers/attention_norm/scale": PartitionSpec(None, None),
    "bert/layers/down/bias": PartitionSpec(None, "fsdp"),
    "bert/layers/down/kernel": PartitionSpec(None, "tensor", "fsdp"),
    "bert/layers/output_norm/bias": PartitionSpec(None, None),
    "bert/layers/output_norm/scale": PartitionSpec(None, None),
    "bert/layers/up/bias": PartitionSpec(None, "tensor"),
    "bert/layers/up/kernel": PartitionSpec(None, "fsdp", "tensor"),
    "bert/pooler/bias": PartitionSpec(None),
    "bert/pooler/kernel": PartitionSpec("fsdp", None),
    "predictions/bias": PartitionSpec("tensor"),
    "predictions/norm/bias": PartitionSpec(None),
    "predictions/norm/scale": PartitionSpec(None),
    "predictions/transform/bias": PartitionSpec(None),
    "predictions/transform/kernel": PartitionSpec("fsdp", None),
    "seq_relationship/bias": PartitionSpec(None),
    "seq_relationship/kernel": PartitionSpec("fsdp", None),
}


def test_parameters_and_moments_live_in_the_same_parts():
    placement = Placement.of(MESHES["2x2x2"])
    model, optimizer = BertForPreTraining(CONFIG), make_optimizer(Optim(), STEPS)
    state = create_state(model, optimizer, state_shardings(model, optimizer, placement), seed=0)
    for tree in (state.params, *moments(state)):
        assert {path: leaf.sharding.spec for path, leaf in by_path(tree).items()} == LIVES
    words = state.params["bert"]["embeddings"]["word"]["embedding"]
    assert {shard.data.shape for shard in words.addressable_shards} == {(48, 16)}


def test_micro_batches_compute_no_row_twice():
    """The pass that adds up the weights is left out by the compiler, but for the labels."""
    placement = Placement.of(MeshShape(), jax.devices()[:1])
    model, optimizer = BertForPreTraining(CONFIG), make_optimizer(Optim(), STEPS)
    shardings = state_shardings(model, optimizer, placement)
    batch = pretraining_batch(np.random.default_rng(0))

    def products(gradient_accumulation_steps):
        def loss(params, batch, _):
            out = model.apply({"params": params}, batch["input_ids"])
            return pretraining_loss(out, batch)

        step = compile_step(
            loss, optimizer, placement, shardings, gradient_accumulation_steps=gradient_accumulation_steps
        )
        lowered = step.lower(state_shapes(model, optimizer), placement.batch(batch), SEED)
        return lowered.compile().as_text().count(" dot(")

    assert products(2) == products(1) > 20


@pytest.mark.parametrize(
    "shape, rows, gradient_accumulation_steps, said",
    [
        (MeshShape(), 12, 1, "batch_size is 12, which does not divide over 8 devices; use a multiple of 8"),
        (MeshShape(tensor=2), 18, 1, "batch_size is 18, which does not divide over 4 devices; use a multiple of 4"),
        (MeshShape(fsdp=2, tensor=2), 24, 4, "over 4 devices and 4 gradient accumulation steps; use a multiple of 16"),
    ],
)
def test_batches_that_do_not_divide(shape, rows, gradient_accumulation_steps, said):
    with pytest.raises(ValueError, match=said):
        Placement.of(shape).check_rows("batch_size", rows, gradient_accumulation_steps=gradient_accumulation_steps)


def test_meshes_of_no_devices():
    with pytest.raises(ValueError, match="fsdp is 0; it must be at least 1"):
        MeshShape(fsdp=0)
