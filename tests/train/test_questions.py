"""Files in SQuAD's format: what is read, what is repaired, what is refused."""

import dataclasses
import json
from collections import Counter

import datasets
import pytest

from train.data.bad_rows import BadRows
from train.data.questions import SquadAnswer, WrongOffsets, exclude_questions, read_squad, trainable_questions
from train.data.sources import split_by_group

SQUAD = "tasks/squad_v2_cs224n/dev-v2.0.cs224n-half.json"


def answer(text, start):
    return {"text": text, "answer_start": start}


def squad(*questions, context="Anna lives in Rome, and Otto lives in Rome.", version="1.1", **article):
    asked = [
        {"id": str(i), "question": f"q{i}?", **question} if question is not None else 0
        for i, question in enumerate(questions)
    ]
    paragraph = {"context": context, "qas": asked}
    return {"version": version, "data": [{"title": "T", "paragraphs": [paragraph], **article}]}


@pytest.fixture
def read(tmp_path):
    def written(content, **how):
        file = tmp_path / "file.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return read_squad(file, **how)

    return written


def test_squad_2_as_published(data_dir):
    found = read_squad(data_dir / SQUAD)
    assert len(found.rows) == 6078 and found.impossible == 3168 and (found.repaired, found.not_located) == (0, 0)
    first = found.rows[0]
    assert (first.title, first.question) == ("Normans", "In what country is Normandy located?")
    assert first.answers == (SquadAnswer("France", 159),) * 4 and not first.impossible
    assert first.source.endswith("half.json: data[0].paragraphs[0].qas[0]")
    for row in found.rows:
        assert all(row.context.startswith(answer.text, answer.start) for answer in row.answers)
        assert bool(row.answers) != row.impossible


def test_squad_2_without_its_answers(data_dir):
    found = read_squad(data_dir / "tasks/squad_v2_cs224n/test-v2.0.cs224n-noanswers.json")
    assert len(found.rows) == 5915 and not found.labelled and found.impossible == 0


def test_questions_as_the_datasets_library_has_them(data_dir, tmp_path):

    file = data_dir / "tasks/samples/SQUAD/sample.json"
    found = read_squad(file)
    assert (len(found.rows), found.impossible) == (14, 6)
    assert found.rows[0].answers == (SquadAnswer("France", 159),) * 4
    entries = json.loads(file.read_text())["data"]
    datasets.Dataset.from_list([{**entry, "title": "T"} for entry in entries[:3]]).save_to_disk(tmp_path / "set")
    (stored,) = [read_squad(f"datasets:{tmp_path / 'set'}", split="train")]
    assert [q.answers for q in stored.rows] == [q.answers for q in found.rows[:3]]
    assert stored.rows[2].source.endswith("set:2")


def test_cmrc_offsets_of_which_some_are_wrong(data_dir):
    file = data_dir / "tasks/cmrc2018/cmrc2018_trial.squadstyle.json"
    given = [
        (q["id"], p["context"], a["text"], a["answer_start"])
        for article in json.loads(file.read_text())["data"]
        for p in article["paragraphs"]
        for q in p["qas"]
        for a in q["answers"]
    ]
    wrong = {number for number, context, text, start in given if context[start : start + len(text)] != text}
    found = read_squad(file)
    assert found.repaired == len(wrong) == 5 and found.not_located == 0
    for row, (number, context, text, start) in zip(found.rows, given, strict=True):
        assert row.id == number and row.answers[0].text == text.strip()
        assert context[row.answers[0].start :].startswith(text.strip())
        assert row.answers[0].start == start - (number in wrong) + len(text) - len(text.lstrip())
    # One or two characters are repaired whatever becomes of others.
    for policy in (WrongOffsets.DROP, WrongOffsets.REFUSE):
        assert read_squad(file, wrong_offsets=policy) == found


def test_offsets_that_are_further_off(read):
    content = squad(
        {"answers": [answer("Rome", 20)]},  # nearer to the first (14) than to the second (38)
        {"answers": [answer("Rome", 30)]},
        {"answers": [answer("Paris", 0), answer("Otto", 25)]},
        {"answers": [answer(" Otto ", 23)]},
        {"answers": [answer("Anna", -1)]},
        {"answers": [answer("Rome", 4000)]},
        {"answers": [answer("Rome.", -5)]},  # no place from the end
    )
    with pytest.raises(ValueError, match="5 of 7 rows can't be used"):
        read(content)
    found = read(content, wrong_offsets=WrongOffsets.REPAIR)
    places = [[a.start for a in row.answers] for row in found.rows]
    assert places == [[14], [38], [None, 24], [24], [0], [38], [38]]
    assert (found.repaired, found.not_located) == (6, 1)
    assert found.rows[3].answers == (SquadAnswer("Otto", 24),)
    found = read(content, wrong_offsets=WrongOffsets.DROP)
    assert [[a.start for a in row.answers] for row in found.rows] == [
        [None],
        [None],
        [None, 24],
        [24],
        [0],
        [None],
        [None],
    ]
    assert (found.repaired, found.not_located) == (2, 5)
    assert [row.id for row in trainable_questions(found.rows, impossible=True)] == ["2", "3", "4"]
    with pytest.raises(ValueError, match="5 of 7 rows can't be used") as refused:
        read(content, wrong_offsets=WrongOffsets.REFUSE)
    assert "data[0].paragraphs[0].qas[2]: an answer is not at its 'answer_start'" in str(refused.value)


def test_which_questions_have_no_answer(read):
    with_one, without_one = {"answers": [answer("Rome", 14)]}, {"answers": []}
    stated = squad({**with_one, "is_impossible": False}, {**without_one, "is_impossible": True})
    assert [row.impossible for row in read(stated).rows] == [False, True]
    by_version = squad(with_one, without_one, {}, version="v2.0")
    assert [row.impossible for row in read(by_version).rows] == [False, True, True]
    assert not read(squad(without_one, {}, version="v2.0")).labelled
    for version in ("1.1", "v1.0", "KorQuAD_v1.0_train", "dev", None):
        with pytest.raises(ValueError, match=r"qas\[1\]: no 'answers', and no 'is_impossible' that says so"):
            read(squad(with_one, without_one, version=version))


def test_a_file_whose_answers_are_all_withheld_is_unlabelled(read):
    for withheld in (
        {"answers": [], "is_impossible": False},
        {"answers": [answer("", -1)]},
        {"answers": [{"text": None, "answer_start": None}]},
        {"answers": {"text": [""], "answer_start": [-1]}, "is_impossible": False},
    ):
        found = read(squad(withheld, withheld))
        assert len(found.rows) == 2 and not found.labelled and found.impossible == 0
    with_one = {"answers": [answer("Rome", 14)], "is_impossible": False}
    found = read(squad(with_one, {"answers": [], "is_impossible": False}), bad_rows=BadRows.SKIP)
    assert (len(found.rows), found.left_out) == (1, 1)
    found = read(squad(with_one, {"answers": [answer("", -1)], "is_impossible": True}))
    assert [row.impossible for row in found.rows] == [False, True]


def test_questions_without_ids_are_numbered_and_a_single_missing_id_is_refused(read):
    question = {"question": "q?", "context": "Anna lives in Rome.", "answers": [answer("Rome", 14)]}
    found = read([question, question])
    assert [row.id for row in found.rows] == ["1", "2"] and found.numbered
    assert not read([{**question, "id": "a"}]).numbered
    with pytest.raises(ValueError, match=r"\[1\]: 'id' is None, expected a string"):
        read([{**question, "id": "a"}, {**question, "id": None}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"file\.json is empty"),
        ("{'data': []}", r"file\.json: not a JSON file"),
        ("[" * 100_000, r"file\.json: not a JSON file"),
        ("[]", 'no list "data"'),
        ({"version": "1.1"}, 'no list "data"'),
        ({"data": []}, "no questions"),
        ({"data": ["x"]}, r"data\[0\]: 'x' is not an object"),
        ({"data": [{"paragraphs": 3}]}, r"data\[0\]: no list 'paragraphs' beside 'paragraphs'"),
        ({"data": [{"paragraphs": [{}]}]}, r"data\[0\]\.paragraphs\[0\]: no list 'qas'"),
        (squad({"answers": [answer("x", 0)]}, context=None), "'context' is None, expected a string"),
        (
            {"data": [{"paragraphs": [{"qas": [{"id": 1, "question": "q?", "answers": []}]}]}]},
            r"paragraphs\[0\]\.qas\[0\]: no 'context'",
        ),
        (squad({"answers": [answer("x", 0)]}, context=" \n"), "'context': nothing but blanks"),
        (squad({"question": 7, "answers": [answer("x", 0)]}), "'question' is 7, expected a string"),
        (squad({"answers": [{"text": "Rome"}]}), "'answer_start' is None, expected a whole number"),
        (squad({"answers": "Rome"}), "'answers' is 'Rome', expected a list"),
        (squad({"answers": {"text": ["Rome"], "answer_start": []}}), "of the same length"),
        (squad({"answers": [answer("", 0)]}), "'text': nothing but blanks"),
        (squad({"answers": [answer("Rome", 14)], "is_impossible": True}), "'is_impossible' is true, and yet"),
        (
            squad({"answers": [answer("Rome", 14)]}, {"answers": [], "is_impossible": False}),
            r"qas\[1\]: 'is_impossible' is false, and yet there are no 'answers'",
        ),
        (
            squad({"id": "a", "answers": [answer("Rome", 14)]}, {"id": "a", "answers": []}),
            "the id 'a' is there 2 times",
        ),
        (squad(None), r"qas\[0\]: 0 is not an object"),
    ],
)
def test_what_is_no_such_file(read, content, message):
    with pytest.raises(ValueError, match=message):
        read(content)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: no such file"):
        read_squad(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="name the split's own file"):
        read_squad(tmp_path / "nothing.json", split="train")


def test_whole_articles_are_held_out(data_dir):
    rows = read_squad(data_dir / SQUAD).rows
    articles = [row.title for row in rows]
    sizes = Counter(articles)
    drawn = []
    for seed in range(4):
        train, dev = split_by_group(rows, articles, 0.2, seed=seed)
        assert (train, dev) == split_by_group(rows, articles, 0.2, seed=seed)
        titles = {row.title for row in dev}
        assert not titles & {row.title for row in train} and len(train) + len(dev) == len(rows)
        assert 0.2 <= len(dev) / len(rows) < 0.2 + max(sizes.values()) / len(rows)
        drawn.append(titles)
    assert any(titles != drawn[0] for titles in drawn)


def test_questions_that_two_files_share(data_dir):
    rows = read_squad(data_dir / SQUAD).rows
    others = read_squad(data_dir / "tasks/xquad/xquad.en.json").rows
    kept = exclude_questions(rows, others)
    same = {(row.question, row.context) for row in others}
    assert len(rows) - len(kept) == sum((row.question, row.context) in same for row in rows) == 335
    assert not any((row.question, row.context) in same for row in kept)
    # But for a mark or a capital letter; about another context it is another question.
    typed = dataclasses.replace(rows[0], question="in what country, is the Normandy located", context=rows[0].context)
    assert exclude_questions(rows[:2], [typed]) == rows[1:2]
    assert exclude_questions(rows[:2], [dataclasses.replace(typed, context="Rome")]) == rows[:2]


def hub(number, *texts, start=14, **more):
    """A question in the form of the hub's data sets."""
    answers = {"text": list(texts), "answer_start": [start] * len(texts)}
    return {
        "id": str(number),
        "title": "",
        "context": "Anna lives in Rome.",
        "question": "q?",
        "answers": answers,
    } | more


def test_the_form_of_the_hub(tmp_path):
    questions = [hub(1, "Rome"), hub(2)]
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    for name, content in (
        ("a.json", json.dumps({"data": questions})),
        ("b.json", json.dumps(questions)),
        ("c.jsonl", lines),
        ("d.json", "\ufeff" + lines),
    ):
        (tmp_path / name).write_text(content)
        found = read_squad(tmp_path / name)
        assert [(row.id, row.impossible) for row in found.rows] == [("1", False), ("2", True)], name
    (tmp_path / "one.jsonl").write_text(json.dumps(questions[0]))
    assert [row.id for row in read_squad(tmp_path / "one.jsonl").rows] == ["1"]
    (tmp_path / "e.jsonl").write_text(json.dumps(hub(2)) + "\n")
    assert not read_squad(tmp_path / "e.jsonl").labelled
    datasets.Dataset.from_list(questions).save_to_disk(tmp_path / "set")
    assert [row.impossible for row in read_squad(tmp_path / "set").rows] == [False, True]


def test_incomplete_questions_are_left_out(tmp_path):
    rows = [hub(1, "Rome"), hub(2, answers=None), hub(3, "Rome", context=None)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"\[2\]: 'context' is None.*\n.*--task\.bad-rows skip"):
        read_squad(path)
    found = read_squad(path, bad_rows=BadRows.SKIP)
    assert [row.id for row in found.rows] == ["1"] and found.left_out == 2


def test_large_files_are_read(read, monkeypatch):
    monkeypatch.setattr("flaxbert.files._MAX_JSON_BYTES", 10)
    assert len(read(squad({"answers": [answer("Rome", 14)]})).rows) == 1


def test_an_answer_is_also_looked_for_without_the_marks_at_its_ends():
    assert SquadAnswer("\u0301ab\u200b", 5).spans == [(5, 9), (6, 8)]
    assert SquadAnswer("\u0301", 5).spans == [(5, 6)] and SquadAnswer("a", None).spans == []
