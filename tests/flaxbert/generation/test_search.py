"""Steps of a search on given scores: equal scores, scores that are not numbers, fewer hypotheses than beams."""

import jax.numpy as jnp
import numpy as np

from flaxbert.generation.beams import start_beams
from flaxbert.generation.search import start_search
from flaxbert.generation.settings import GenerationSettings

V = 9
PROMPT, START = jnp.full((2, 3), 5), jnp.zeros(2, jnp.int32)


class NoCache:
    def take_rows(self, rows):
        return self


def settings(**values):
    return GenerationSettings(max_new_tokens=1, pad_token_id=0, **values)


def test_the_first_of_equal_scores_is_chosen_and_nan_gives_a_token_of_the_vocabulary():
    scores = np.zeros((2, V), np.float32)
    scores[0, [3, 6]], scores[1, 2] = 1.0, np.nan
    tokens = start_search(PROMPT, START, jnp.asarray(scores), NoCache(), None, settings()).tokens[:, -1]
    assert tokens[0] == 3 and 0 <= tokens[1] < V


def test_places_without_a_hypothesis_hold_running_beams():
    """Only the first beam counts at first, and it can only end; transformers repeats it."""
    given = settings(num_beams=3, eos_token_id=7, forced_eos_token_id=7)
    best = start_beams(PROMPT, START, jnp.zeros((2, V)), NoCache(), None, given).best
    np.testing.assert_array_equal(best.tokens[..., -1], 7)
    np.testing.assert_array_equal(best.lengths, 1)
    np.testing.assert_array_equal(best.scores, [[0, -1e9, -1e9]] * 2)
