"""Masks against their definitions."""

import numpy as np
import pytest

from flaxbert.losses import IGNORE
from train.data.pretraining.masking import Masking, MaskingRule, random_bits, uniform

PAD, CLS, SEP, MASK, SPECIAL, SIZE = 0, 2, 3, 4, (0, 1, 2, 3, 4), 1000
CONTINUES = np.arange(SIZE) >= 700  # ids from 700 on go on with a word


def rule(**how):
    return Masking(MaskingRule(**how), SIZE, MASK, (CLS, SEP), SPECIAL, CONTINUES)


def rows(count=400, length=128, *, seed=0, examples=1):
    """Random tokens; each row holds examples of the same length, and a tenth of padding."""
    chance = np.random.default_rng(seed)
    ids = chance.integers(5, SIZE, (count, length))
    segments, offsets = np.zeros((count, length), int), np.zeros((count, length), int)
    size = length * 9 // 10 // examples
    for example in range(examples):
        here = slice(example * size, (example + 1) * size)
        ids[:, here.start], ids[:, here.stop - 1] = CLS, SEP
        segments[:, here], offsets[:, here] = example + 1, np.arange(size)
    ids[segments == 0] = PAD
    keys = random_bits(seed, np.arange(count)[:, None], segments)
    return ids.astype(np.int32), segments, offsets, keys


def masked(masking, given, *, slots=128, **how):
    return masking(*given, slots=slots, **how)


def hidden(out):
    """[R, T], where a label stands."""
    chosen = np.zeros(out["input_ids"].shape, bool)
    row, slot = np.nonzero(out["masked_lm_labels"] != IGNORE)
    chosen[row, out["masked_lm_positions"][row, slot]] = True
    return chosen


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_labels_are_the_original_ids_and_nothing_else_is_touched(exact, whole_words):
    given = rows()
    out = masked(rule(exact=exact, whole_words=whole_words), given)
    row, slot = np.nonzero(out["masked_lm_labels"] != IGNORE)
    positions = out["masked_lm_positions"]
    np.testing.assert_array_equal(out["masked_lm_labels"][row, slot], given[0][row, positions[row, slot]])
    np.testing.assert_array_equal(out["input_ids"][~hidden(out)], given[0][~hidden(out)])
    assert not np.isin(given[0][hidden(out)], SPECIAL).any()
    ascending = np.diff(positions, axis=1) > 0
    assert ascending[(out["masked_lm_labels"] != IGNORE)[:, 1:]].all()


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_an_exact_share_of_every_example(rate):
    given = rows(examples=3)
    chosen = hidden(masked(rule(rate=rate), given))
    for example in (1, 2, 3):
        assert (np.sum(chosen & (given[1] == example), axis=1) == round(rate * 38)).all()
    tiny = rows(length=4)  # three tokens each
    assert (hidden(masked(rule(), tiny, slots=4)).sum(axis=1) == 1).all()


def test_a_share_drawn_token_by_token():
    given = rows(2000)
    chosen = hidden(masked(rule(exact=False), given))
    count = chosen.sum(axis=1)
    open_to_choice = 115 - 2
    assert count.mean() == pytest.approx(0.15 * open_to_choice, abs=4 * np.sqrt(open_to_choice * 0.1275 / 2000))
    assert count.var() == pytest.approx(open_to_choice * 0.1275, rel=0.15)  # binomial


def test_every_place_is_chosen_as_often():
    chosen = np.mean([hidden(masked(rule(), rows(seed=seed))) for seed in range(10)], axis=(0, 1))
    np.testing.assert_allclose(chosen[1:114], 17 / 113, atol=5 * np.sqrt(0.13 / 4000))
    assert not chosen[[0, 114]].any()


def test_eighty_ten_ten():
    given = rows(4000)
    out = masked(rule(), given)
    new, old = out["input_ids"][hidden(out)], given[0][hidden(out)]
    assert (new == MASK).mean() == pytest.approx(0.8, abs=0.008)
    assert (new == old).mean() == pytest.approx(0.1, abs=0.006)
    drawn = new[(new != MASK) & (new != old)]
    assert len(drawn) / len(new) == pytest.approx(0.1, abs=0.006)
    # Of the whole vocabulary, special tokens too: each a thousandth.
    counts = np.bincount(drawn, minlength=SIZE)
    assert counts[[0, 1, 2, 3]].sum() > 0 and counts.max() < 6 * counts.mean() and (counts > 0).mean() > 0.95


def words_of(given):
    """[R, T], a number for each word; -1 where nothing may be chosen."""
    ids, segments, _, _ = given
    free = (segments > 0) & ~np.isin(ids, SPECIAL)
    number, words = -1, np.full(ids.shape, -1)
    for row in range(len(ids)):
        for column in range(ids.shape[1]):
            if free[row, column]:
                goes_on = CONTINUES[ids[row, column]] and free[row, column - 1]
                number += not goes_on
                words[row, column] = number
    return words


@pytest.mark.parametrize("exact", [False, True])
def test_whole_words(exact):
    given = rows(examples=2)
    chosen, words = hidden(masked(rule(exact=exact, whole_words=True), given)), words_of(given)
    total = np.bincount(words[words >= 0])
    taken = np.bincount(words[chosen], minlength=len(total))
    assert set(np.unique(taken[taken > 0] - total[taken > 0])) == {0}  # all of a word or nothing
    if exact:
        count = np.sum(chosen & (given[1] == 1), axis=1)
        # Not exceeded, and short of it only by less than a word that was passed over.
        assert count.max() == round(0.15 * 57) and count.mean() > round(0.15 * 57) - 1
    else:
        assert chosen.sum() / (words >= 0).sum() == pytest.approx(0.15, abs=0.01)
        assert (taken > 0).mean() == pytest.approx(0.15, abs=0.01)


def test_words_that_are_given():
    given = rows()
    starts = np.zeros(given[0].shape, bool)
    starts[:, ::3] = True
    chosen = hidden(masked(rule(whole_words=True), given, word_starts=starts))
    triples = chosen[:, 3:114].reshape(len(chosen), -1, 3)
    assert (triples.all(axis=2) == triples.any(axis=2)).all() and triples.any()


def test_no_more_than_asked_for():
    given = rows(examples=3)
    for exact in (True, False):
        chosen = hidden(masked(rule(rate=0.5, exact=exact, most=4), given))
        assert (np.sum(chosen & (given[1] == 2), axis=1) <= 4).all()
        assert chosen.sum() > 0.95 * 12 * len(chosen)
    out = masked(rule(rate=0.5), given, slots=20)
    assert out["masked_lm_labels"].shape == (400, 20) and (hidden(out).sum(axis=1) == 20).all()
    left = (out["input_ids"] != given[0]) & ~hidden(out)
    assert not left.any()  # what has no slot is not hidden either


def test_room_for_predictions():
    for length, examples in ((128, 1), (512, 1), (512, 12), (100, 4)):
        masking = rule()
        slots = masking.rule.predictions(length, examples)
        chance = np.random.default_rng(length)
        for _ in range(200):
            cuts = np.sort(chance.choice(np.arange(1, length), examples - 1, replace=False))
            sizes = np.diff([0, *cuts, length])
            assert sum(max(1, round(0.15 * size)) for size in sizes) <= slots
    exact = MaskingRule()
    assert exact.predictions(128) == 19 and exact.predictions(512) == 77
    assert MaskingRule(most=20).predictions(512) == 20
    assert rule(exact=False).rule.predictions(128) < 40


def test_masks_are_functions_of_key_and_place_alone():
    ids, segments, offsets, keys = rows(6)
    out = masked(rule(), (ids, segments, offsets, keys))
    one = masked(rule(), tuple(values[2:3] for values in (ids, segments, offsets, keys)))
    for name in out:
        np.testing.assert_array_equal(out[name][2:3], one[name])
    # The same example elsewhere in a row.
    rolled = tuple(np.roll(values, 10, axis=1) for values in (ids, segments, offsets, keys))
    np.testing.assert_array_equal(np.roll(out["input_ids"], 10, axis=1), masked(rule(), rolled)["input_ids"])
    assert (masked(rule(), (ids, segments, offsets, keys + np.uint64(1)))["input_ids"] != out["input_ids"]).any()


def test_special_tokens_alone_predict_nothing():
    ids = np.array([[CLS, 1, SEP, PAD]], np.int32)
    segments, offsets = np.array([[1, 1, 1, 0]]), np.arange(4)[None]
    for whole_words in (False, True):
        out = masked(rule(whole_words=whole_words), (ids, segments, offsets, np.zeros((1, 4), np.uint64)), slots=2)
        assert (out["masked_lm_labels"] == IGNORE).all()
        np.testing.assert_array_equal(out["input_ids"], ids)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_that_cannot_be(rate):
    with pytest.raises(ValueError, match="the masking rate is"):
        rule(rate=rate)
    with pytest.raises(ValueError, match="max_predictions is 0"):
        rule(most=0)


def test_random_bits():
    # SplitMix64's own first outputs from seed 0 (Vigna's splitmix64.c; also java.util.SplittableRandom).
    assert [int(random_bits(0)[0]), int(random_bits(0x9E3779B97F4A7C15)[0])] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    drawn = uniform(random_bits(1, np.arange(10**6)))
    assert drawn.mean() == pytest.approx(0.5, abs=0.0012) and drawn.var() == pytest.approx(1 / 12, rel=0.01)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert len(np.unique(random_bits(np.arange(300)[:, None], np.arange(300)))) == 90_000
    assert int(random_bits(1, 2)[0]) != int(random_bits(2, 1)[0])
