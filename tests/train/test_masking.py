import numpy as np
import pytest

from flaxbert.losses import IGNORE
from train.data.masking import Masking

SPECIAL = (0, 1, 2, 3, 4)
MASKING = Masking(vocab_size=1000, mask_id=4, pad_id=0, special_ids=SPECIAL, rate=0.15, length=128)


def row(length=128):
    return np.concatenate([[2], np.arange(5, 5 + length - 2), [3]]).astype(np.int32)


def masked(seed, length=128):
    return MASKING(row(length), np.random.default_rng(seed))


def test_labels_are_the_original_ids_at_the_positions():
    out = masked(0)
    np.testing.assert_array_equal(out["masked_lm_labels"], row()[out["masked_lm_positions"]])
    untouched = np.setdiff1d(np.arange(128), out["masked_lm_positions"])
    np.testing.assert_array_equal(out["input_ids"][untouched], row()[untouched])


def test_exactly_fifteen_percent_and_unused_slots_ignored():
    assert (masked(0)["masked_lm_labels"] != IGNORE).sum() == 19  # round(0.15 * 128)
    short = masked(0, length=40)
    assert (short["masked_lm_labels"] != IGNORE).sum() == 6
    assert (short["masked_lm_labels"][6:] == IGNORE).all()
    assert (masked(0, length=3)["masked_lm_labels"] != IGNORE).sum() == 1


def test_special_tokens_are_never_predicted():
    for seed in range(50):
        positions = masked(seed)["masked_lm_positions"]
        assert 0 not in positions and 127 not in positions
        assert (np.diff(positions) > 0).all()


def test_a_row_of_special_tokens_only_predicts_nothing():
    out = MASKING(np.asarray([2, 1, 3], np.int32), np.random.default_rng(0))
    assert (out["masked_lm_labels"] == IGNORE).all()
    np.testing.assert_array_equal(out["input_ids"], [2, 1, 3])


def test_eighty_ten_ten():
    kinds = {"mask": 0, "same": 0, "random": 0}
    drawn = []
    for seed in range(2000):
        out = masked(seed)
        new, old = out["input_ids"][out["masked_lm_positions"]], out["masked_lm_labels"]
        kinds["mask"] += (new == 4).sum()
        kinds["same"] += (new == old).sum()
        kinds["random"] += ((new != 4) & (new != old)).sum()
        drawn.extend(new[(new != 4) & (new != old)])
    total = sum(kinds.values())
    assert total == 2000 * 19
    # Four standard deviations of a binomial share are 0.008 here.
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.01)
    assert kinds["same"] / total == pytest.approx(0.1, abs=0.01)
    assert kinds["random"] / total == pytest.approx(0.1, abs=0.01)
    assert min(drawn) < 20 and max(drawn) > 980  # the whole vocabulary


def test_same_generator_same_masks():
    first, again, other = masked(3), masked(3), masked(4)
    np.testing.assert_array_equal(first["input_ids"], again["input_ids"])
    assert (first["input_ids"] != other["input_ids"]).any()
