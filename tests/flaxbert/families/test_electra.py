"""ELECTRA against PyTorch's `transformers`: outputs, losses, gradients, weights both ways."""

import jax
import numpy as np
import pytest
import torch

import flaxbert
from flaxbert import losses
from flaxbert.conversion.convert import convert
from flaxbert.families.electra import ELECTRA, ElectraConfig
from tests.flaxbert.parity import assert_parity, assert_round_trip, saved
from tests.trees import initial

CLASSES = [known.name for known in ELECTRA.architectures if known.is_in_transformers]
CASES = [
    ("ElectraModel", "padded", {}),
    ("ElectraModel", "rows", {}),
    ("ElectraForPreTraining", "embeds", {}),
    ("ElectraForMaskedLM", "padded", {}),
    ("ElectraForMaskedLM", "embeds", {"tie_word_embeddings": False}),
    ("ElectraForCausalLM", "padded", {"is_decoder": True}),
    ("ElectraForSequenceClassification", "padded", {"num_labels": 3}),
    ("ElectraForMultipleChoice", "padded", {}),
    ("ElectraForMultipleChoice", "padded", {"summary_use_proj": False, "summary_activation": "tanh"}),
    ("ElectraForTokenClassification", "rows", {"num_labels": 7}),
    ("ElectraForQuestionAnswering", "padded", {}),
]


@pytest.mark.parametrize(
    ("seed", "name", "variant", "fixed"),
    [(i, *case) for i, case in enumerate(CASES)],
    ids=["-".join([name, variant, *fixed]) for name, variant, fixed in CASES],
)
def test_outputs_loss_and_gradients_equal_pytorch(seed, name, variant, fixed, tmp_path):
    assert_parity(name, seed, variant, fixed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300, 340))
def test_random_models_equal_pytorch(seed, tmp_path):
    rng = np.random.default_rng(seed)
    name, variant = str(rng.choice(CLASSES)), str(rng.choice(["padded", "embeds"]))
    if name == "ElectraForPreTraining":  # its reference takes the loss of what may be attended to
        variant = "embeds"
    fixed = {"hidden_size": 30, "embedding_size": int(rng.choice([20, 30]))}  # narrower ones round by more
    fixed |= {"num_labels": int(rng.integers(2, 9))} if "Classification" in name else {}
    assert_parity(name, seed, variant, fixed, tmp_path)


def test_padding_does_not_count_in_the_loss(tmp_path):
    reference = saved("ElectraForPreTraining", tmp_path)
    model, params = flaxbert.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(1, 99, (3, 8)), rng.integers(0, 2, (3, 8))
    mask = (np.arange(8) < np.array([[8], [3], [5]])).astype(np.int64)
    with torch.no_grad():
        wanted = reference(torch.tensor(ids), attention_mask=torch.tensor(mask), labels=torch.tensor(labels)).loss
    logits = model.apply({"params": params}, ids, attention_mask=mask).logits
    loss = losses.replaced_tokens(logits, np.where(mask == 1, labels, losses.IGNORE))
    np.testing.assert_allclose(loss.mean, wanted.numpy(), rtol=0, atol=1e-5)
    assert loss.weight == mask.sum()


def test_dropout_of_the_summary():
    config = ElectraConfig(
        vocab_size=30,
        num_hidden_layers=1,
        max_position_embeddings=9,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        summary_last_dropout=1.0,
    )
    model = flaxbert.ElectraForMultipleChoice(config)
    params = initial(model)
    logits = lambda **more: model.apply({"params": params}, model.example_ids, **more).logits  # noqa: E731
    assert not np.any(logits(deterministic=False, rngs={"dropout": jax.random.key(0)})) and np.any(logits())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embedding_size": 0}, "embedding_size is 0; it must be a whole number from 1"),
        ({"summary_type": "mean"}, "summary_type is 'mean'; allowed: 'first'"),
        ({"summary_activation": "sine"}, "summary_activation is 'sine'; allowed: '', "),
        ({"summary_last_dropout": 2.0}, "summary_last_dropout is 2.0; it must be a number from 0 to 1"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match=message):
        ElectraConfig(**values)


@pytest.mark.parametrize(("name", "tied"), [*((name, True) for name in CLASSES), ("ElectraForMaskedLM", False)])
def test_a_folder_of_transformers_passes_through_bit_for_bit(name, tied, tmp_path, caplog):
    decoder = {"is_decoder": True} if name.endswith("CausalLM") else {}
    assert_round_trip(name, tmp_path, caplog, tie_word_embeddings=tied, **decoder)


def test_conversion_through_flax_and_orbax(tmp_path):
    saved("ElectraForMaskedLM", tmp_path / "0", embedding_size=9)
    for number, form in enumerate(("flax", "orbax", "safetensors"), 1):
        done = convert(tmp_path / str(number - 1), tmp_path / str(number), format=form, verify=True)
        assert (done.head, done.newly_initialised, done.left_out) == ("ElectraForMaskedLM", [], [])
