"""MPNet against PyTorch's `transformers`: outputs, losses, gradients, weights both ways, buckets, sentence vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

import flaxbert
from flaxbert import functional, surgery
from flaxbert.conversion.convert import convert
from flaxbert.families.mpnet import BUCKETS, MPNET, MPNetConfig
from flaxbert.pipelines import SentenceEmbeddingPipeline
from tests.flaxbert.parity import assert_parity, assert_round_trip, saved
from tests.trees import initial

CLASSES = [known.name for known in MPNET.architectures if known.is_in_transformers]
CASES = [
    ("MPNetModel", "padded", {}),
    ("MPNetModel", "rows", {}),
    ("MPNetForMaskedLM", "padded", {}),
    ("MPNetForMaskedLM", "embeds", {"tie_word_embeddings": False}),
    ("MPNetForSequenceClassification", "padded", {"num_labels": 3}),
    ("MPNetForMultipleChoice", "padded", {}),
    ("MPNetForTokenClassification", "rows", {"num_labels": 7}),
    ("MPNetForQuestionAnswering", "padded", {}),
]


@pytest.mark.parametrize(
    ("seed", "name", "variant", "fixed"),
    [(i, *case) for i, case in enumerate(CASES)],
    ids=[f"{name}-{variant}" for name, variant, _ in CASES],
)
def test_outputs_loss_and_gradients_equal_pytorch(seed, name, variant, fixed, tmp_path):
    assert_parity(name, seed, variant, fixed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 240))
def test_random_models_equal_pytorch(seed, tmp_path):
    rng = np.random.default_rng(seed)
    name, variant = str(rng.choice(CLASSES)), str(rng.choice(["padded", "embeds"]))
    fixed = {"hidden_size": 30} | ({"num_labels": int(rng.integers(2, 9))} if "Classification" in name else {})
    assert_parity(name, seed, variant, fixed, tmp_path)


def test_buckets_are_those_of_transformers():
    distances = np.arange(-1500, 1501)
    numbers = np.arange(BUCKETS, dtype=np.float32)[:, None]
    found = functional.bucket_bias(jnp.asarray(numbers), jnp.asarray(distances)[None, None])[0, 0, 0]
    wanted = MPNetEncoder.relative_position_bucket(torch.tensor(-distances), num_buckets=BUCKETS)
    np.testing.assert_array_equal(found, wanted.numpy())


def new_model(name, **changes):
    model = getattr(flaxbert, name)(MPNetConfig.tiny(vocab_size=30, max_position_embeddings=20, **changes))
    params = initial(model)
    table = params["mpnet"]["relative_bias"]["embedding"]
    params["mpnet"]["relative_bias"]["embedding"] = jax.random.normal(jax.random.key(1), table.shape)
    return model, params


def test_packed_rows_score_like_rows_apart():
    model, params = new_model("MPNetForSequenceClassification")
    ids, segments = np.arange(10, 18)[None], np.array([[1, 1, 1, 2, 2, 2, 2, 2]])
    packed = model.apply(
        {"params": params},
        ids,
        attention_mask=functional.packed_mask(segments),
        position_ids=np.array([[2, 3, 4, 2, 3, 4, 5, 6]]),
        first_positions=np.array([[0, 3]]),
    )
    apart = [model.apply({"params": params}, part).logits[0] for part in (ids[:, :3], ids[:, 3:])]
    np.testing.assert_allclose(packed.logits[0], np.stack(apart), rtol=0, atol=1e-5)


def test_pruned_heads_take_their_column_of_the_table():
    model, params = new_model("MPNetForMaskedLM")
    ids, mask = np.arange(10, 18)[None], np.ones((2, 2), np.float32)
    mask[0, 1] = 0
    wanted = model.apply({"params": params}, ids, head_mask=mask).logits
    config, pruned = surgery.prune_heads(model.config, params, {0: [1]})
    got = model.clone(config=config).apply({"params": pruned}, ids).logits
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64; allowed: 32"),
        ({"max_position_embeddings": 2}, "positions begin at 2"),
        ({"is_decoder": True}, "is_decoder is True; a mpnet model has no such setting"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match=message):
        MPNetConfig(**values)


@pytest.mark.parametrize(("name", "tied"), [*((name, True) for name in CLASSES), ("MPNetForMaskedLM", False)])
def test_a_folder_of_transformers_passes_through_bit_for_bit(name, tied, tmp_path, caplog):
    assert_round_trip(name, tmp_path, caplog, tie_word_embeddings=tied)


def test_conversion_through_flax_and_orbax(tmp_path):
    saved("MPNetForSequenceClassification", tmp_path / "0", num_labels=3)
    for number, form in enumerate(("flax", "orbax", "safetensors"), 1):
        done = convert(tmp_path / str(number - 1), tmp_path / str(number), format=form, verify=True)
        assert (done.head, done.newly_initialised, done.left_out) == ("MPNetForSequenceClassification", [], [])


def test_sentence_vectors_equal_the_mean_of_transformers(tmp_path):
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "the", "cat", "sat", "dog"]
    model = saved("MPNetModel", tmp_path, vocab_size=len(words))
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MPNetTokenizer", "do_lower_case": true}')
    texts = ["The cat sat", "dog"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    wanted = ((states * mask).sum(1) / mask.sum(1)).numpy()
    found = np.stack(list(SentenceEmbeddingPipeline.from_pretrained(tmp_path, normalize=False)(texts)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
