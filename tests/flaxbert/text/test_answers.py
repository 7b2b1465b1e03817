"""Windows over the context of a question, and the ranking of answers."""

import dataclasses
import json
from random import Random

import numpy as np
import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from flaxbert.text.answers import AnswerLogits, rank_answers, saved_answer_settings
from flaxbert.text.windows import (
    QuestionWindow,
    WindowingOptions,
    max_context_windows,
    question_windows,
    sliding_windows,
)
from flaxbert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer

WORDS = [f"w{i}" for i in range(40)]
CONTEXT = " ".join(WORDS)


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer.from_tokens([*SPECIAL_TOKENS, *WORDS], lowercase=True)


def starts(windows):
    """Which word each window's context begins with."""
    return [int(window.ids[window.first]) - len(SPECIAL_TOKENS) for window in windows]


@pytest.mark.parametrize("settings", [(40, 6, False), (64, 0, True), (100, 30, False), (384, 128, False)])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_windows_with_an_overlap_equal_transformers(data_dir, language, settings):
    length, overlap, context_first = settings
    folder = data_dir / "tokenizers" / {"en": "bert-base-uncased", "zh": "chinese-roberta-wwm-ext"}[language]
    content = json.loads((data_dir / f"tasks/xquad/xquad.{language}.json").read_text())
    paragraphs = [p for article in content["data"][:8] for p in article["paragraphs"]]
    questions = [p["qas"][0]["question"] for p in paragraphs]
    contexts = [p["context"] for p in paragraphs]
    reference = AutoTokenizer.from_pretrained(folder)
    # There questions are never cut.
    keep = [i for i, ids in enumerate(reference(questions)["input_ids"]) if len(ids) <= length // 2]
    questions, contexts = [questions[i] for i in keep], [contexts[i] for i in keep]
    expected = reference(
        *((contexts, questions) if context_first else (questions, contexts)),
        truncation="only_first" if context_first else "only_second",
        max_length=length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windowing = WindowingOptions(max_length=length, max_query=length // 2, overlap=overlap, context_first=context_first)
    found = [w for ws in question_windows(WordPieceTokenizer.load(folder), questions, contexts, windowing) for w in ws]
    assert len(found) > len(keep) or length == 384
    assert [w.ids.tolist() for w in found] == expected["input_ids"]
    assert [w.types.tolist() for w in found] == expected["token_type_ids"]
    for window, offsets in zip(found, expected["offset_mapping"], strict=True):
        own = offsets[window.first : window.first + len(window.offsets)]
        assert window.offsets.tolist() == [list(pair) for pair in own]
        assert window.first == 1 if context_first else window.first + len(own) + 1 == len(window.ids)


@pytest.mark.parametrize(("question", "room"), [("w1", 8), ("w1 w2 w3", 6), ("w1 w2 w3 w4 w5 w6", 5)])
def test_step_and_overlap_give_equal_windows(tokenizer, question, room):
    def cut(**how):
        return question_windows(tokenizer, [question], [CONTEXT], WindowingOptions(12, 4, **how))[0]

    assert starts(cut(step=2)) == [*range(0, 40 - room, 2), -(-(40 - room) // 2) * 2]
    overlaps, steps = cut(overlap=4), cut(step=room - 4)
    assert [window.ids.tolist() for window in overlaps] == [window.ids.tolist() for window in steps]
    assert len(overlaps[0].offsets) == room and starts(overlaps)[1] == room - 4
    # A longer step would leave words out.
    assert starts(cut(step=100)) == list(range(0, 40, room))


def test_ids_types_and_offsets_of_a_window(tokenizer):
    (windows,) = question_windows(tokenizer, ["w1 w2 w3 w4 w5"], [CONTEXT], WindowingOptions(12, 4, step=3))
    cls, sep = tokenizer.token_id("[CLS]"), tokenizer.token_id("[SEP]")
    question = [tokenizer.token_id(f"w{i}") for i in (1, 2, 3, 4)]  # w5 is cut off
    words = [tokenizer.token_id(word) for word in WORDS[3:8]]
    assert windows[1].ids.tolist() == [cls, *question, sep, *words, sep] and windows[1].first == 6
    assert windows[1].types.tolist() == [0] * 6 + [1] * 6
    assert [CONTEXT[start:end] for start, end in windows[1].offsets] == WORDS[3:8]
    start = CONTEXT.index("w5")
    assert windows[1].positions(start, start + len("w5 w6")) == (8, 9)
    assert windows[1].positions(start + 1, start + 2) == (8, 8)  # part of a token
    assert windows[1].positions(start, start + len("w5 w6 w7 w8")) is None
    assert windows[1].positions(CONTEXT.index("w2"), start) is None


# In the second a long window shows a token better than the last one, though that has more of its nearer side.
@pytest.mark.parametrize(("length", "words", "step"), [(12, 40, 2), (300, 400, 120)])
def test_each_token_has_max_context_in_exactly_one_window(tokenizer, length, words, step):
    context = " ".join(WORDS[i % 40] for i in range(words))
    (windows,) = question_windows(tokenizer, ["w1 w2"], [context], WindowingOptions(length, 4, step=step))
    # run_squad's rule, word by word: the smaller of left and right, and a hundredth of the length.
    for word in range(words):
        shown = {}
        for number, window in enumerate(windows):
            left, right = word - number * step, number * step + len(window.offsets) - 1 - word
            if left >= 0 and right >= 0:
                shown[number] = min(left, right) + 0.01 * len(window.offsets)
        best = max(shown, key=lambda number: shown[number])
        assert [n for n in shown if windows[n].has_max_context[word - n * step]] == [best]
    assert len(windows[-1].offsets) < len(windows[0].offsets) == length - 5


def test_context_without_tokens_has_a_window_and_no_answer(tokenizer):
    (windows,) = question_windows(tokenizer, ["w1"], ["\u200b"], WindowingOptions(12, 4, step=2))
    assert len(windows) == 1 and len(windows[0].offsets) == 0 and len(windows[0].ids) == 4
    logits = np.array([1.0, 2.0, 3.0, 4.0])
    for may_be_empty in (False, True):
        found = rank_answers("\u200b", windows, [AnswerLogits(logits, logits)], may_be_empty=may_be_empty)
        assert found.best == "" and found.text(0.0) == "" and found.null_odds == 2.0
        assert len(found.candidates) == may_be_empty


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of step"),
        ({"step": 2, "overlap": 2}, "exactly one of step"),
        ({"step": 0}, "at least 1"),
        ({"overlap": 5}, "allowed: 0 to 4"),
        ({"step": 2, "max_query": 9}, "allowed: 1 to 8"),
    ],
)
def test_invalid_windowing_options(settings, message):
    with pytest.raises(ValueError, match=message):
        WindowingOptions(**{"max_length": 12, "max_query": 4, **settings})


def reference(context, windows, starts, ends, n_best, max_answer, may_be_empty):
    """run_squad's search, pair by pair: texts with scores and probabilities, and the null odds."""
    pairs = []
    for window, start, end in zip(windows, starts, ends, strict=True):
        places = range(len(window.ids))
        best = [sorted(places, key=lambda i, of=of: -of[i])[:n_best] for of in (start, end)]
        for i in best[0]:
            for j in best[1]:
                a, b = i - window.first, j - window.first
                inside = all(0 <= place < len(window.offsets) for place in (a, b))
                if inside and window.has_max_context[a] and i <= j < i + max_answer:
                    pairs.append((start[i] + end[j], context[window.offsets[a][0] : window.offsets[b][1]]))
    null = min(start[0] + end[0] for start, end in zip(starts, ends, strict=True))
    if may_be_empty:
        pairs.append((null, ""))
    found = {}
    for score, text in sorted(pairs, key=lambda pair: -pair[0]):
        if len(found) < n_best and text not in found:
            found[text] = score
    if may_be_empty:
        found.setdefault("", null)
    total = sum(np.exp(score) for score in found.values())
    odds = null - next((score for text, score in found.items() if text), 0.0)
    return [(text, score, np.exp(score) / total) for text, score in found.items()], odds


@pytest.mark.parametrize("may_be_empty", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_ranking_equals_an_exhaustive_search(tokenizer, seed, may_be_empty):
    random = np.random.default_rng(seed)
    # Few words, so that many answers have the same text.
    context = " ".join(random.choice(WORDS[:4], size=int(random.integers(1, 60))))
    (windows,) = question_windows(
        tokenizer, ["w1 w2"], [context], WindowingOptions(24, 4, step=int(random.integers(1, 20)))
    )
    # Rounded, so that some scores are the same; padded, as outputs of a batch are, with scores that must not count.
    starts, ends = (
        [np.append(np.round(random.normal(size=len(w.ids)), 1), [99.0] * 3) for w in windows] for _ in range(2)
    )
    n_best, max_answer = int(random.integers(2, 12)), int(random.integers(1, 8))
    logits = list(map(AnswerLogits, starts, ends))
    found = rank_answers(context, windows, logits, n_best=n_best, max_answer=max_answer, may_be_empty=may_be_empty)
    expected, odds = reference(context, windows, starts, ends, n_best, max_answer, may_be_empty)
    assert [c.text for c in found.candidates] == [text for text, _, _ in expected]
    np.testing.assert_allclose([c.score for c in found.candidates], [score for _, score, _ in expected])
    np.testing.assert_allclose([c.probability for c in found.candidates], [chance for _, _, chance in expected])
    np.testing.assert_allclose(found.null_odds, odds)
    assert all(context[c.start : c.end] == c.text for c in found.candidates)


# Words with marks that BERT's uncased normaliser removes, ligatures, Hangul, emoji of several characters.
LETTERS = [
    "cafe\u0301",
    "café",
    "ﬁn",
    "Œuvre",
    "한국어",
    "\u1112\u1161\u11ab",
    "ที่",
    "น้ำ",
    "हिन्दी",
    "مُحَمَّد",
    "İ",
    "ǆ",
    "a\u0323\u0302",
]
LETTERS += [
    "❤\ufe0f",
    "👩\u200d👩\u200d👧",
    "🏴\U000e0067\U000e0062\U000e007f",
    "👍🏽",
    "🇹🇭",
    "x",
    "東京",
    "e\u20dd",
    "ß",
]
INVISIBLE = ["\u200b", "\u200c", "\u00ad", "\u200f", "\ufeff", "\x07"]


def context_of_any_script(random):
    """Draw a context, and the start and end of some of its words, which may have invisible characters around them."""
    context, words = random.choice(["", " ", INVISIBLE[0]]), []
    for _ in range(random.randrange(1, 30)):
        start = len(context)
        context += "".join(random.choices(LETTERS, k=random.randrange(1, 4)))
        words.append((start, len(context)))
        context += random.choice(["", *INVISIBLE]) * (random.random() < 0.2) + random.choice(
            [" ", "  ", ", ", "\u3000"]
        )
    first = random.randrange(len(words))
    last = random.randrange(first, min(len(words), first + 4))
    return context.rstrip() if random.random() < 0.5 else context, words[first][0], words[last][1]


@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(1000, 2000), marks=pytest.mark.slow)], ids=["150", "1000"]
)
def test_answers_of_any_script_are_taught_and_returned_whole(seeds):
    pieces = [
        "cafe",
        "ca",
        "##fe",
        "ᄒ",
        "##ᅡ",
        "##ᆫ",
        "ᄒ",
        "##ᅮ",
        "ท",
        "##ท",
        "น",
        "##า",
        "ह",
        "##न",
        "##द",
        "م",
        "##ح",
        "##م",
        "##د",
    ]
    pieces += [
        "❤",
        "##❤",
        "👩",
        "##👩",
        "##👧",
        "🏴",
        "##🏴",
        "👍",
        "##👍",
        "##🏽",
        "x",
        "##x",
        "東",
        "京",
        "i",
        "##i",
        "##a",
        "##e",
    ]
    tokenizer = WordPieceTokenizer.from_tokens([*SPECIAL_TOKENS, *dict.fromkeys(pieces)], lowercase=True)
    for seed in seeds:
        random = Random(seed)
        context, start, end = context_of_any_script(random)
        options = WindowingOptions(random.choice([24, 60, 384]), 4, step=random.randrange(1, 20))
        (windows,) = question_windows(tokenizer, ["x"], [context], options)
        (encoding,) = tokenizer.encode_pieces([context])
        answer = [i for i, (first, last) in enumerate(encoding.offsets) if first < end and last > start]
        for n, (first, last) in enumerate(options.context_spans(1, len(encoding))):
            window = windows[n]
            if not first <= answer[0] <= answer[-1] < last:
                assert window.positions(start, end) is None
                continue
            positions = window.positions(start, end)
            assert positions == (window.first + answer[0] - first, window.first + answer[-1] - first)
            assert positions == window.positions(start, end + (context[end : end + 1] in INVISIBLE))
            if window.has_max_context[answer[0] - first]:
                starts, ends = ([np.full(len(w.ids), -9.0) for w in windows] for _ in range(2))
                starts[n][positions[0]] = ends[n][positions[1]] = 9.0
                logits = list(map(AnswerLogits, starts, ends))
                assert rank_answers(context, windows, logits, max_answer=400).best == context[start:end]


def test_memory_of_the_max_context_rule_is_linear():
    spans = sliding_windows(1_000_000, 100, 50)  # 20,000 windows; all at once would take 160 GB
    assert np.bincount(max_context_windows(spans, 1_000_000)).max() <= 76


def test_windows_around_the_special_tokens_of_another_tokenizer(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    pairs = dataclasses.replace(tokenizer, backend=backend)
    (windows,) = question_windows(pairs, ["w1 w2"], [CONTEXT], WindowingOptions(16, 4, overlap=2))
    assert all(len(window.ids) <= 16 and not window.types.any() and window.first == 5 for window in windows)
    assert windows[0].ids[:6].tolist() == [2, 6, 7, 3, 3, 5] and windows[0].ids[-1] == 3
    with pytest.raises(ValueError, match="windows of 10 tokens hold 2 tokens of context"):
        question_windows(pairs, ["w1 w2 w3 w4"], [CONTEXT], WindowingOptions(10, 4, overlap=2))


def window_of(text):
    ids = np.arange(len(text) + 4, dtype=np.int32)
    offsets = np.array([[i, i + 1] for i in range(len(text))])
    return QuestionWindow(ids, ids * 0, 3, offsets, np.ones(len(text), bool), (0, len(text)))


def test_ranking_of_a_hand_computed_example():
    window = window_of("东京是首都")  # positions 3 to 7
    assert window.positions(2, 3) == (5, 5)
    start, end = np.zeros(9), np.zeros(9)
    start[3], end[4], start[0], end[0] = 5.0, 4.0, 1.0, 2.0
    found = rank_answers("东京是首都", [window], [AnswerLogits(start, end)], n_best=3, may_be_empty=True)
    assert (found.best, found.null_odds) == ("东京", 3.0 - 9.0)
    # The other best starts and ends are [CLS] and the token after it.
    assert [c.text for c in found.candidates] == ["东京", ""]
    assert found.candidates[0].probability == pytest.approx(1 / (1 + np.exp(-6)))
    assert found.text(None) == found.text(-6.0) == "东京" and found.text(-6.1) == ""


def test_invalid_scores():
    window = window_of("abc")
    with pytest.raises(ValueError, match="5 scores for a window of 7"):
        rank_answers("abc", [window], [AnswerLogits(np.zeros(5), np.zeros(7))])
    with pytest.raises(ValueError, match="no windows"):
        rank_answers("abc", [], [])
    with pytest.raises(ValueError, match="at least 1, or 2"):
        rank_answers("abc", [window], [AnswerLogits(np.zeros(7), np.zeros(7))], n_best=1, may_be_empty=True)


@pytest.mark.parametrize("value", [True, float("nan"), [1], "abc"])
def test_saved_settings_that_cannot_be_theirs_are_told(value, caplog):
    def saved(threshold):
        return saved_answer_settings({"task_specific_params": {"question-answering": {"null_threshold": threshold}}})

    assert saved(value) == {} and "null_threshold of question-answering in config.json is" in caplog.text
    caplog.clear()
    assert saved(2) == saved(2.0) == {"null_threshold": 2.0} and saved(None) == {} and not caplog.text
