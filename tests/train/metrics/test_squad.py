"""Exact match and F1 by hand, and against the rules written down once more."""

import collections
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.metrics.squad import (
    best_null_threshold,
    chinese_segments,
    cmrc_exact_match,
    cmrc_f1,
    cmrc_metrics,
    exact_match,
    normalise_answer,
    squad1_metrics,
    squad2_metrics,
    token_f1,
    token_f1_or_empty,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tan  A-Team!", "cat ateam"),  # marks go first: "A-Team" is one word
        ("a.an", "aan"),
        ("an apple a day", "apple day"),
        ("Theatre of the Absurd", "theatre of absurd"),
        ("«Ça» – A\u00a0É", "«ça» – é"),  # ASCII marks only; no-break space is one
        ("The", ""),
        ("$1,000.50 (U.S.)", "100050 us"),
        ("1 000", "1 000"),
        ("ＡＢ．", "ａｂ．"),
    ],
)
def test_normalisation(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "prediction", "expected"),
    [
        ("the Denver Broncos", "Denver Broncos!", (1.0, 1.0, 1.0)),
        ("Denver Broncos", "Broncos Denver", (0.0, 1.0, 1.0)),  # F1 knows no order
        ("Denver Broncos", "the Broncos won", (0.0, 0.5, 0.5)),
        ("b b c", "b", (0.0, 0.5, 0.5)),
        ("b", "b b b", (0.0, 0.5, 0.5)),
        ("cat", "dog", (0.0, 0.0, 0.0)),
        ("", "", (1.0, 0.0, 1.0)),
        ("", "cat", (0.0, 0.0, 0.0)),
        ("cat", "the", (0.0, 0.0, 0.0)),
        ("", "the", (1.0, 0.0, 1.0)),
    ],
)
def test_a_prediction_and_an_answer(answer, prediction, expected):
    assert (
        exact_match(answer, prediction),
        token_f1(answer, prediction),
        token_f1_or_empty(answer, prediction),
    ) == expected


def test_squad_1_takes_the_best_answer():
    gold = {"x": ["in 1066", "1066"], "y": ["King William the Conqueror"], "z": ["London"]}
    found = squad1_metrics({"x": "1066.", "y": "William", "z": "Paris"}, gold)
    assert found == {"exact": 100 / 3, "f1": 100 * (1 + 2 * 1 * (1 / 3) / (1 + 1 / 3)) / 3}


GOLD = {"a": ["Rome"], "b": [], "c": ["the"], "d": ["Otto", "Anna"], "e": []}
BEST = {"a": "Rome", "b": "Paris", "c": "x", "d": "Anna Maria", "e": "Milan"}
ODDS = {"a": -5.0, "b": 2.0, "c": 1.0, "d": -1.0, "e": -3.0}


def test_squad_2_by_hand():
    found = squad2_metrics(BEST, GOLD, ODDS, threshold=0.0)
    # a is right, b and c are empty: right and wrong ("the" has an answer); d is half right; e is not empty.
    two_thirds = 2 * 0.5 * 1 / (0.5 + 1)
    assert found == {
        "exact": 100.0 * 2 / 5,
        "f1": 100.0 * (2 + two_thirds) / 5,
        "HasAns_exact": 100.0 * 1 / 3,
        "HasAns_f1": 100.0 * (1 + two_thirds) / 3,
        "HasAns_total": 3,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
        # None answered: 2 of 5; then a: 3, e: 2, d: 2 exactly or 2 2/3, c: as before, b: one less.
        "best_exact": 60.0,
        "best_exact_thresh": -5.0,
        "best_f1": 60.0,
        "best_f1_thresh": -5.0,
    }
    assert best_null_threshold(BEST, GOLD, ODDS) == -5.0
    # At the threshold itself a question keeps its answer.
    assert squad2_metrics(BEST, GOLD, ODDS, threshold=-5.0)["exact"] == 60.0


def test_squad_2_where_all_have_answers_or_none():
    found = squad2_metrics({"a": "Rome"}, {"a": ["Rome"]}, {"a": 3.0}, threshold=2.0)
    assert found["exact"] == 0.0 and found["best_exact"] == 100.0 and found["best_exact_thresh"] == 3.0
    assert "NoAns_exact" not in found
    found = squad2_metrics({"b": "x"}, {"b": []}, {"b": -3.0}, threshold=2.0)
    assert found["exact"] == 0.0 and found["best_exact"] == 100.0 and found["best_exact_thresh"] == 0.0
    assert "HasAns_exact" not in found


def plain_words(text):
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def plain_f1(answer, prediction):
    wanted, found = plain_words(answer), plain_words(prediction)
    if not wanted or not found:
        return float(wanted == found)
    rest, common = list(wanted), 0
    for word in found:
        if word in rest:
            rest.remove(word)
            common += 1
    return 2 * common / (len(wanted) + len(found))


def plain_scores(predictions, gold):
    """Exact match and F1 of each question, by the words of the definition."""
    found = {}
    for name, texts in gold.items():
        texts = [text for text in texts if plain_words(text)] or [""]
        found[name] = tuple(
            max(score(text, predictions[name]) for text in texts)
            for score in (lambda a, b: float(plain_words(a) == plain_words(b)), plain_f1)
        )
    return found


texts = st.text(alphabet="ab. Aéthne-京’\u00a0", max_size=9)
questions = st.lists(
    st.tuples(texts.filter(bool), st.lists(texts.filter(bool), max_size=3), st.integers(-3, 3)), min_size=1, max_size=9
)


@settings(max_examples=300, deadline=None)
@given(questions, st.integers(-3, 3))
def test_squad_2_equals_its_definition(rows, threshold):
    predictions = {str(i): row[0] for i, row in enumerate(rows)}
    gold = {str(i): row[1] for i, row in enumerate(rows)}
    odds = {str(i): float(row[2]) for i, row in enumerate(rows)}
    found = squad2_metrics(predictions, gold, odds, threshold=threshold)
    plain = plain_scores(predictions, gold)
    empty = {name: (float(not texts),) * 2 for name, texts in gold.items()}
    kept = {name: empty[name] if odds[name] > threshold else plain[name] for name in gold}
    for kind, place in (("exact", 0), ("f1", 1)):
        assert found[kind] == pytest.approx(100 * sum(s[place] for s in kept.values()) / len(rows))
        for prefix, has in (("HasAns", True), ("NoAns", False)):
            part = [kept[name][place] for name in gold if bool(gold[name]) is has]
            assert (f"{prefix}_{kind}" in found) == bool(part)
            if part:
                assert found[f"{prefix}_{kind}"] == pytest.approx(100 * sum(part) / len(part))
        # So many are answered, in the order of their odds; one that has no answer is wrong then.
        order = sorted(gold, key=lambda name: odds[name])
        answered = {name: plain[name][place] if gold[name] else 0.0 for name in gold}
        totals = [
            sum(answered[name] for name in order[:count]) + sum(empty[name][0] for name in order[count:])
            for count in range(len(order) + 1)
        ]
        assert found[f"best_{kind}"] == pytest.approx(100 * max(totals) / len(rows))
        first = next(count for count, total in enumerate(totals) if total > max(totals) - 1e-9)
        assert found[f"best_{kind}_thresh"] == (odds[order[first - 1]] if first else 0.0)
    first = {name: texts for name, texts in gold.items() if any(map(plain_words, texts))}
    if first:
        expected = {name: plain_scores(predictions, {name: first[name]})[name] for name in first}
        scores = squad1_metrics(predictions, {name: [t for t in ts if plain_words(t)] for name, ts in first.items()})
        assert scores["exact"] == pytest.approx(100 * sum(e for e, _ in expected.values()) / len(first))
        assert scores["f1"] == pytest.approx(100 * sum(f for _, f in expected.values()) / len(first))


@pytest.mark.parametrize(
    ("answer", "prediction", "expected"),
    [
        ("《泡泡堂》", "泡泡堂", (1.0, 1.0)),  # marks of its list do not count
        ("泡泡堂、", "泡泡", (0.0, 0.8)),
        ("1990年", "90年", (0.0, 0.5)),  # a number is one word
        ("ABC 公司", "abc公司", (0.0, 1.0)),  # blanks separate words, and count as characters
        ("甲乙丙丁", "丙丁甲乙", (0.0, 0.5)),  # one run in common, not all that is
        ("甲", "乙", (0.0, 0.0)),
        ("，。", "：", (1.0, 0.0)),
        ("3,000 (USD)。", "3,000", (0.0, 2 * 1 * 0.25 / 1.25)),
    ],
)
def test_cmrc_by_hand(answer, prediction, expected):
    scores = cmrc_exact_match(answer, prediction), cmrc_f1(answer, prediction)
    assert scores == pytest.approx(expected)
    found = cmrc_metrics({"q": prediction}, {"q": ["错", answer]})
    assert found == pytest.approx({"exact": 100 * expected[0], "f1": 100 * expected[1], "average": 50 * sum(expected)})


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("共3.5万人", ["共", "3.5", "万", "人"]),
        ("U.S. Navy.", ["u.s.", "navy", "."]),
        ("(a) 1,5; x,y", ["(", "a", ")", "1,5", ";", "x", ",", "y"]),
        ("2-1", ["21"]),
        (",5年", [",5", "年"]),
        ("50%", ["50", "%"]),
        ("等等...", ["等", "等", "..."]),
    ],
)
def test_what_is_between_chinese_characters(text, segments):
    assert chinese_segments(text) == segments


characters = st.text(alphabet="甲乙丙，《京 ", max_size=8)


@settings(max_examples=300, deadline=None)
@given(characters, characters)
def test_cmrc_equals_its_definition_on_characters(answer, prediction):
    wanted, found = ([c for c in text if c in "甲乙丙京"] for text in (answer, prediction))
    runs = collections.Counter(
        j - i for i in range(len(wanted)) for j in range(i + 1, len(wanted) + 1) if occurs(wanted[i:j], found)
    )
    longest = max(runs, default=0)
    expected = 2 * longest / (len(wanted) + len(found)) if longest else 0.0
    assert cmrc_f1(answer, prediction) == pytest.approx(expected)


def occurs(run, letters):
    return any(letters[i : i + len(run)] == run for i in range(len(letters)))


def test_the_best_threshold_lets_no_question_be_answered_where_that_is_best():
    references, predictions = {"a": [], "b": []}, {"a": "wrong", "b": "wrong"}
    for odds in ({"a": -3.0, "b": -1.0}, {"a": 2.0, "b": 4.0}, {"a": 0.0, "b": 0.0}):
        threshold = best_null_threshold(predictions, references, odds)
        assert squad2_metrics(predictions, references, odds, threshold=threshold)["f1"] == 100.0
        assert threshold <= 0.0


def test_the_best_threshold_takes_equal_odds_together():
    """Answers with equal odds are given or not together, although the first alone would be better."""
    references, predictions = {"a": ["x"], "b": [], "c": []}, {"a": "x", "b": "y", "c": "y"}
    odds = {"a": 1.0, "b": 1.0, "c": 1.0}
    threshold = best_null_threshold(predictions, references, odds)
    assert squad2_metrics(predictions, references, odds, threshold=threshold)["f1"] == pytest.approx(200 / 3)
