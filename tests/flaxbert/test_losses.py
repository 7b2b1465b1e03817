"""The loss of every head against PyTorch's functions, and what makes sums over micro-batches exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flaxbert import losses
from flaxbert.losses import Loss

B, T, V, N = 4, 6, 150, 5
RNG = np.random.default_rng(0)


def scores(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(0, 3, shape), jnp.float32)


def labels(*shape, below, ignored=0.4):
    # More than 100 classes: -100 would wrap to one of them without a word.
    rng = np.random.default_rng(sum(shape))
    return np.where(rng.random(shape) < ignored, losses.IGNORE, rng.integers(0, below, shape))


def torch_cross_entropy(logits, labels):
    logits = torch.from_numpy(np.array(logits))
    return float(F.cross_entropy(logits.reshape(-1, logits.shape[-1]), torch.from_numpy(labels).reshape(-1)))


WORDS, NEXT, TAGS = labels(B, T, below=V), np.array([1, 0, -100, 1]), labels(B, T, below=N)
SHARED = {  # head: (our loss of logits and labels, logits, labels)
    "masked_lm": (losses.masked_lm, scores(B, T, V), WORDS),
    "next_sentence": (losses.next_sentence, scores(B, 2), NEXT),
    "multiple_choice": (losses.multiple_choice, scores(B, 3), np.array([2, 0, -100, 1])),
    "token_classification": (losses.token_classification, scores(B, T, N), TAGS),
    "sequence_classification": (losses.sequence_classification, scores(B, N), np.array([4, -100, 0, 2])),
}


@pytest.mark.parametrize("head", SHARED)
def test_cross_entropies_equal_pytorch(head):
    loss, logits, given = SHARED[head]
    np.testing.assert_allclose(loss(logits, given).mean, torch_cross_entropy(logits, given), rtol=1e-6)
    assert float(loss(logits, given).weight) == (given != losses.IGNORE).sum()


def test_causal_lm_compares_each_position_with_the_next_label():
    logits = scores(B, T, V)
    wanted = torch_cross_entropy(logits[:, :-1], WORDS[:, 1:])
    np.testing.assert_allclose(losses.causal_lm(logits, WORDS).mean, wanted, rtol=1e-6)


def test_pretraining_is_the_sum_of_two_means():
    words, pairs = scores(B, T, V), scores(B, 2)
    wanted = torch_cross_entropy(words, WORDS) + torch_cross_entropy(pairs, NEXT)
    np.testing.assert_allclose(losses.pretraining(words, pairs, WORDS, NEXT).mean, wanted, rtol=1e-6)


@pytest.mark.parametrize("trailing", [False, True])
def test_question_answering_clamps_and_ignores_like_pytorch(trailing):
    starts, ends = np.array([-3, 2, T, 5]), np.array([T + 9, 0, -1, T - 1])
    logits = scores(B, T), scores(T, B).T
    wanted = [
        F.cross_entropy(torch.from_numpy(np.array(x)), torch.from_numpy(y).clamp(0, T), ignore_index=T)
        for x, y in zip(logits, (starts, ends), strict=True)
    ]
    if trailing:
        starts, ends = starts[:, None], ends[:, None]
    np.testing.assert_allclose(losses.question_answering(*logits, starts, ends).mean, float(sum(wanted)) / 2, rtol=1e-6)


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_regression_on_one_column_takes_labels_with_and_without_it(problem_type):
    logits, given = scores(B, 1), RNG.normal(size=B).astype(np.float32)
    wanted = float(F.mse_loss(torch.from_numpy(np.array(logits))[:, 0], torch.from_numpy(given)))
    for shaped in (given, given[:, None], given.astype(np.float64)):
        loss = losses.sequence_classification(logits, shaped, problem_type=problem_type)
        np.testing.assert_allclose(loss.mean, wanted, rtol=1e-6)
    # A batch of one row, where a squeeze would have lost the batch axis.
    one = losses.sequence_classification(logits[:1], given[:1])
    np.testing.assert_allclose(one.mean, (logits[0, 0] - given[0]) ** 2, rtol=1e-6)


def test_regression_on_several_columns_averages_over_all_entries():
    logits, given = scores(B, N), RNG.normal(size=(B, N)).astype(np.float32)
    wanted = float(F.mse_loss(torch.from_numpy(np.array(logits)), torch.from_numpy(given)))
    loss = losses.sequence_classification(logits, given, problem_type="regression")
    np.testing.assert_allclose(loss.mean, wanted, rtol=1e-6)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
def test_multi_label_equals_binary_cross_entropy_even_far_out(problem_type):
    logits, given = 30 * scores(B, N), RNG.integers(0, 2, (B, N)).astype(np.float32)
    wanted = F.binary_cross_entropy_with_logits(torch.from_numpy(np.array(logits)), torch.from_numpy(given))
    loss = losses.sequence_classification(logits, given, problem_type=problem_type)
    np.testing.assert_allclose(loss.mean, float(wanted), rtol=1e-6)


def test_multi_label_takes_whole_numbers_when_told_the_type():
    given = RNG.integers(0, 2, (B, N))
    told = losses.sequence_classification(scores(B, N), given, problem_type="multi_label_classification")
    np.testing.assert_allclose(told.mean, losses.sequence_classification(scores(B, N), given * 1.0).mean, rtol=1e-6)


PROBLEMS = {
    "regression": (scores(B, 1), RNG.normal(size=B).astype(np.float32)),
    "single_label_classification": (scores(B, N), np.array([4, -100, 0, 2])),
    "multi_label_classification": (scores(B, N), RNG.integers(0, 2, (B, N)).astype(np.float32)),
}


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_weight_zero_leaves_a_row_out(problem_type):
    logits, given = PROBLEMS[problem_type]
    weighted = losses.sequence_classification(logits, given, problem_type=problem_type, weights=np.array([1, 1, 0, 0]))
    alone = losses.sequence_classification(logits[:2], given[:2], problem_type=problem_type)
    np.testing.assert_allclose(weighted.sum, alone.sum, rtol=1e-6)
    np.testing.assert_allclose(weighted.weight, alone.weight, rtol=1e-6)


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_weights_are_factors(problem_type):
    logits, given = PROBLEMS[problem_type]
    weights = np.array([2.0, 1.0, 0.0, 0.5])
    loss = losses.sequence_classification(logits, given, problem_type=problem_type, weights=weights)
    rows = [
        losses.sequence_classification(logits[i : i + 1], given[i : i + 1], problem_type=problem_type) for i in range(B)
    ]
    np.testing.assert_allclose(loss.sum, sum(w * float(r.sum) for w, r in zip(weights, rows, strict=True)), rtol=1e-6)
    wanted = sum(w * float(r.weight) for w, r in zip(weights, rows, strict=True))
    np.testing.assert_allclose(loss.weight, wanted, rtol=1e-6)


# -- sums, weights and their quotient --------------------------------------------------------------------------


def every_loss(rows=slice(None)):
    for head, (loss, logits, given) in SHARED.items():
        yield head, loss(logits[rows], given[rows])
    yield "causal_lm", losses.causal_lm(scores(B, T, V)[rows], WORDS[rows])
    yield "pretraining", losses.pretraining(scores(B, T, V)[rows], scores(B, 2)[rows], WORDS[rows], NEXT[rows])
    starts, ends = np.array([-3, 2, T, 5])[rows], np.array([T + 9, 0, -1, T - 1])[rows]
    yield "question_answering", losses.question_answering(scores(B, T)[rows], scores(B, T)[rows], starts, ends)
    for problem_type, (logits, given) in PROBLEMS.items():
        yield problem_type, losses.sequence_classification(logits[rows], given[rows], problem_type=problem_type)


def test_micro_batches_add_up_to_the_whole():
    # Unequal counts: a mean of means would be another number.
    parts = zip(every_loss(slice(0, 1)), every_loss(slice(1, None)), every_loss(), strict=True)
    for (head, first), (_, rest), (_, whole) in parts:
        total = first + rest
        np.testing.assert_allclose(total.sum, whole.sum, rtol=1e-6, err_msg=head)
        np.testing.assert_array_equal(total.weight, whole.weight, err_msg=head)
        np.testing.assert_allclose(total.mean, whole.mean, rtol=1e-6, err_msg=head)


@pytest.mark.parametrize("head", SHARED)
def test_nothing_counted_is_zero_with_a_gradient_of_zero(head):
    loss, logits, given = SHARED[head]
    mean, gradient = jax.value_and_grad(lambda x: loss(x, np.full_like(given, losses.IGNORE)).mean)(logits)
    assert float(mean) == 0
    assert not np.any(gradient)


def test_no_position_within_the_sequence_is_zero():
    beyond = np.full(B, T)
    assert float(losses.question_answering(scores(B, T), scores(B, T), beyond, beyond).mean) == 0


def test_ignored_labels_get_no_gradient():
    loss, logits, given = SHARED["masked_lm"]
    gradient = np.asarray(jax.grad(lambda x: loss(x, given).mean)(logits))
    assert not gradient[given == losses.IGNORE].any()
    assert gradient[given != losses.IGNORE].any(axis=-1).all()


def test_bfloat16_logits_are_summed_in_float32():
    logits = scores(B, T, V).astype(jnp.bfloat16)
    loss = losses.masked_lm(logits, WORDS)
    assert loss.sum.dtype == jnp.float32
    np.testing.assert_allclose(loss.mean, torch_cross_entropy(logits.astype(jnp.float32), WORDS), rtol=1e-6)


def test_a_loss_is_a_tree():
    loss = jax.jit(lambda x: losses.masked_lm(x, WORDS))(scores(B, T, V))
    assert isinstance(loss, Loss)
    assert len(jax.tree.leaves(loss)) == 2


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "wrong", "message"),
    [
        ("masked_lm", V, rf"labels holds {V} at \[2, 1\]; allowed: 0 to {V - 1}"),
        ("masked_lm", -1, r"labels holds -1 at \[2, 1\]"),
        ("token_classification", N, rf"labels holds {N} at \[2, 1\]; allowed: 0 to {N - 1}"),
        ("token_classification", -99, r"labels holds -99 at \[2, 1\]"),
    ],
)
def test_labels_out_of_range(head, wrong, message):
    loss, logits, given = SHARED[head]
    given = given.copy()
    given[2, 1] = wrong
    with pytest.raises(ValueError, match=message):
        loss(logits, given)


@pytest.mark.parametrize("head", ["next_sentence", "multiple_choice", "sequence_classification"])
def test_label_of_a_row_out_of_range(head):
    loss, logits, given = SHARED[head]
    with pytest.raises(ValueError, match=r"labels holds 7 at \[0\]; allowed: 0 to"):
        loss(logits, np.where(np.arange(B) == 0, 7, given))


def test_labels_of_the_causal_head_out_of_range():
    wrong = WORDS.copy()
    wrong[0, 3] = V
    with pytest.raises(ValueError, match=f"labels holds {V}"):
        losses.causal_lm(scores(B, T, V), wrong)


@pytest.mark.parametrize("head", SHARED)
def test_labels_of_another_shape(head, unchecked):
    loss, logits, given = SHARED[head]
    # The first two would broadcast.
    for wrong in (given[:1], given[..., None] if given.ndim == 1 else given[:, :1], given[:-1], given.ravel()[:2]):
        with pytest.raises(
            ValueError, match=r"labels has shape \[" + ", ".join(map(str, wrong.shape)) + r"\]; allowed"
        ):
            loss(logits, wrong)


@pytest.mark.parametrize("head", sorted(set(SHARED) - {"sequence_classification"}))
def test_labels_that_are_no_whole_numbers(head, unchecked):
    loss, logits, given = SHARED[head]
    with pytest.raises(ValueError, match="labels are float32"):
        loss(logits, given.astype(np.float32))


def test_question_answering_checks_both_shapes(unchecked):
    logits, right = scores(B, T), np.zeros(B, int)
    with pytest.raises(ValueError, match=r"start_positions has shape \[1\]; allowed: \[4\] or \[4, 1\]"):
        losses.question_answering(logits, logits, right[:1], right)
    with pytest.raises(ValueError, match=r"end_positions has shape \[4, 2\]"):
        losses.question_answering(logits, logits, right, np.zeros((B, 2), int))


def test_sequence_classification_names_what_is_wrong(unchecked):
    logits = scores(B, N)
    with pytest.raises(ValueError, match="problem_type is 'multilabel'; allowed: None, regression"):
        losses.sequence_classification(logits, np.zeros(B, int), problem_type="multilabel")
    for problem_type in ("regression", "multi_label_classification"):
        with pytest.raises(ValueError, match=rf"labels have shape \(4,\); {problem_type} over logits \(4, 5\) needs"):
            losses.sequence_classification(logits, np.zeros(B), problem_type=problem_type)
    for wrong in (np.ones(1), np.ones(B + 1), np.ones((B, 1))):
        with pytest.raises(ValueError, match=r"weights has shape"):
            losses.sequence_classification(logits, np.zeros(B, int), weights=wrong)
