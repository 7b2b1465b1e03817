"""Generated tables of all tasks and formats: labels as they were meant, or the rows that have none by name.

The generator knows what each row means; how it is spelled is drawn.
"""

import csv
import json
import random
from pathlib import Path

import datasets
import numpy as np
import pytest

from flaxbert.text.tags import TagScheme
from train.data.bad_rows import BadRows
from train.data.choice_questions import read_choice_questions
from train.data.labelled_texts import read_labelled_texts
from train.data.questions import read_squad
from train.data.tagged_examples import infer_tags
from train.data.tagged_sentences import read_tagged_sentences
from train.tasks import problems

FORMATS = (".csv", ".tsv", ".jsonl", ".json", "set")
MISSING = {
    ".csv": ["", "nan"],
    ".tsv": ["", "NaN"],
    ".jsonl": [None, "", float("nan")],
    ".json": [None, ""],
    "set": [None],
}


def write(folder: Path, name: str, rows: list[dict], ending: str, features: datasets.Features | None = None) -> Path:
    path = folder / f"{name}{ending}"
    if ending == "set":
        datasets.Dataset.from_list(rows, features=features).save_to_disk(path)
    elif ending in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        quoting = csv.QUOTE_MINIMAL if ending == ".csv" else csv.QUOTE_NONE
        with path.open("w", newline="") as stream:
            table = csv.DictWriter(
                stream,
                rows[0],
                delimiter="," if ending == ".csv" else "\t",
                quoting=quoting,
                quotechar=None if ending == ".tsv" else '"',
            )
            table.writeheader()
            table.writerows(rows)
    return path


def spell(chance: random.Random, label: str, ending: str) -> object:
    """A spelling of a label that means the same."""
    if ending == "set" or not label.lstrip("-").isdigit():
        return chance.choice([label, f"{label} ", f" {label}"]) if ending != "set" else label
    number = int(label)
    plain = [label, f"{label}.0", f"+{label}" if number >= 0 else label]
    return chance.choice([*plain, number, float(number)] if ending in (".jsonl", ".json") else plain)


def named_or_left_out(read, path: Path, ending: str, missing: list[int]):
    """Read what has no missing label; else see that the error names just these rows, and read the others."""
    if not missing:
        return read(path)
    with pytest.raises(ValueError) as refused:
        read(path)
    named = [
        line.split(": ")[0].rpartition(":")[2] for line in str(refused.value).splitlines()[1 : 1 + min(5, len(missing))]
    ]
    first = {".csv": 2, ".tsv": 2, ".jsonl": 1, ".json": 1, "set": 0}[ending]
    assert named == [str(first + i) for i in missing[:5]] and "--task.bad-rows skip" in str(refused.value)
    rows = read(path, bad_rows=BadRows.SKIP)
    assert rows.left_out == len(missing)
    return rows


def one_label(chance: random.Random, folder: Path) -> None:
    ending = chance.choice(FORMATS)
    classes = chance.choice(
        [
            ["no", "yes"],
            ["0", "1"],
            ["2", "10", "1"],
            ["-1", "0", "1"],
            ["neg", "neutral", "pos"],
            ["+", "-"],
            ["été", "hiver"],
        ]
    )
    meant = [chance.choice(classes) for _ in range(30)] + classes
    missing = sorted(chance.sample(range(30), chance.choice([0, 0, 1, 7])))
    markers = MISSING[ending] + (["-"] if "-" not in classes and ending != "set" else [])
    cells = [spell(chance, label, ending) for label in meant]
    for i in missing:
        cells[i] = chance.choice(markers)
    features = None
    if ending == "set":
        declared = datasets.ClassLabel(names=chance.sample(classes, len(classes)))
        features = datasets.Features({"text": datasets.Value("string"), "label": declared})
        cells = [-1 if cell is None else declared.str2int(cell) for cell in cells]
        expected = tuple(declared.names)
    else:
        numbers = all(label.lstrip("-").isdigit() for label in classes)
        expected = tuple(sorted(classes, key=int if numbers else None))
    rows = [{"text": f"t{i}", "label": cell} for i, cell in enumerate(cells)]
    found = named_or_left_out(read_labelled_texts, write(folder, "one", rows, ending, features), ending, missing)
    problem = problems.make_problem("single_label_classification", found, labels=(), separator=",")
    kept = [label for i, label in enumerate(meant) if i not in missing]
    keys = [str(float(label)) if label.lstrip("-").isdigit() else label for label in expected]
    names = [
        str(float(label)) if label.lstrip("+-").replace(".", "").isdigit() else label.strip()
        for label in problem.labels
    ]
    assert names == keys
    assert problems.targets(problem, found).tolist() == [expected.index(label) for label in kept]


def several_labels(chance: random.Random, folder: Path) -> None:
    ending = chance.choice(FORMATS[:4])
    classes = ["joy", "love", "no fear", "it's"]
    meant = [[name for name in classes if chance.random() < 0.4] for _ in range(30)] + [classes, classes[:1]]
    style = chance.choice(["joined", "list", "vector", "python", "numpy"])

    def cell(own: list[str]) -> object:
        vector = [float(name in own) for name in classes]
        if style == "vector":
            return vector if ending in (".jsonl", ".json") else json.dumps(vector)
        if style == "numpy":
            return str(np.array(vector))
        if style == "list":
            return own if ending in (".jsonl", ".json") else json.dumps(own)
        return str(own) if style == "python" else ",".join(own)

    path = write(folder, "several", [{"text": f"t{i}", "labels": cell(own)} for i, own in enumerate(meant)], ending)
    named = tuple(classes) if style in ("vector", "numpy") else ()
    found = read_labelled_texts(path, separator=",", labels=named)
    problem = problems.make_problem("multi_label_classification", found, labels=named, separator=",")
    expected = [[float(name in own) for name in problem.labels] for own in meant]
    assert sorted(problem.labels) == sorted(classes) and problems.targets(problem, found).tolist() == expected


def number(chance: random.Random, folder: Path) -> None:
    ending = chance.choice(FORMATS[:4])
    meant = [round(chance.uniform(0, 5), 2) for _ in range(30)] + [4.5]
    missing = sorted(chance.sample(range(30), chance.choice([0, 0, 3])))
    marker = chance.choice([-1.0, -1, *MISSING[ending]])
    cells = [marker if i in missing else value for i, value in enumerate(meant)]
    path = write(folder, "number", [{"text": f"t{i}", "score": cell} for i, cell in enumerate(cells)], ending)
    found = named_or_left_out(read_labelled_texts, path, ending, missing)
    problem = problems.make_problem("regression", found, labels=(), separator=",")
    np.testing.assert_allclose(problems.targets(problem, found), [v for i, v in enumerate(meant) if i not in missing])
    # An unlabelled set: -1 throughout, empty cells, or no column.
    rows = [{"text": "t", "score": chance.choice([-1.0, ""])}] * 3 if chance.random() < 0.7 else [{"text": "t"}] * 3
    rest = read_labelled_texts(write(folder, "rest", rows, ending), train=found)
    assert [row.label for row in rest] == [None] * 3


def choice(chance: random.Random, folder: Path) -> None:
    ending = chance.choice(FORMATS[:4])
    first = chance.choice([0, 1])
    meant = [chance.choice([0, 1, 2, None]) for _ in range(20)]
    letters = chance.random() < 0.3

    def cell(label: int | None) -> object:
        if label is None:
            return chance.choice(["", "-1", "-", "nan"])
        return "ABC"[label] if letters else chance.choice([str(label + first), f"{label + first}.0"])

    rows = [
        {"premise": f"P{i}", "choice1": "a", "choice2": "b", "choice3": "c", "label": cell(label)}
        for i, label in enumerate(meant)
    ]
    found = read_choice_questions(write(folder, "choice", rows, ending), first_label=first)
    assert [question.label for question in found] == meant


def tags(chance: random.Random, folder: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    meant = []
    for _ in range(20):
        kinds = [chance.choice(["O", "PER", "LOC"]) for _ in range(chance.randint(1, 6))]
        meant.append(["O" if kind == "O" else f"B-{kind}" for kind in kinds])
    meant.append(["B-PER", "I-PER", "B-LOC", "I-LOC"])
    words = [[f"w{i}" for i in range(len(own))] for own in meant]
    style = chance.choice(["columns", "lists", "numbers", "set"])
    if style == "columns":
        between = chance.choice(["\t", " "])
        lines = [
            "\n".join(f"{w}{between}x{between}{t}" for w, t in zip(*pair, strict=True))
            for pair in zip(words, meant, strict=True)
        ]
        path = folder / "tags.conll"
        path.write_text("-DOCSTART- -X- O\n\n" + "\n\n".join(lines) + "\n")
    else:
        numbered = style in ("numbers", "set")
        rows = [
            {"tokens": w, "ner_tags": [names.index(tag) for tag in t] if numbered else t}
            for w, t in zip(words, meant, strict=True)
        ]
        lists = {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
        }
        path = write(folder, "tags", rows, "set" if style == "set" else ".jsonl", datasets.Features(lists))
    found = read_tagged_sentences(path, labels=names if style == "numbers" else ())
    assert [list(sentence.tags) for sentence in found] == meant
    expected = names if style == "set" else ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert infer_tags(found, TagScheme.IOB2) == tuple(expected)


def question(chance: random.Random, folder: Path) -> None:
    context = "Anna lives in Rome, Otto in Bonn."
    meant = [chance.choice(["Rome", "Bonn", None]) for _ in range(20)] + ["Rome", None]
    style = chance.choice(["squad", "data", "list", "lines", "set"])
    found = []
    for i, text in enumerate(meant):
        start = [] if text is None else [context.index(text)]
        texts = [] if text is None else [text]
        listed = [{"text": t, "answer_start": s} for t, s in zip(texts, start, strict=True)]
        own = {"id": str(i), "question": "q?"}
        hub = {**own, "context": context, "answers": {"text": texts, "answer_start": start}}
        found.append({**own, "answers": listed, "is_impossible": text is None} if style == "squad" else hub)
    path = folder / ("question.jsonl" if style == "lines" else "question.json")
    if style == "set":
        path = write(folder, "question", found, "set")
    elif style == "lines":
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    else:
        squad = {"data": [{"paragraphs": [{"context": context, "qas": found}]}]}
        path.write_text(json.dumps({"squad": squad, "data": {"data": found}, "list": found}[style]))
    rows = read_squad(path).rows
    assert [row.answers[0].text if row.answers else None for row in rows] == meant
    assert [row.impossible for row in rows] == [text is None for text in meant]


TASKS = (one_label, several_labels, number, choice, tags, question)


def compare(seeds: range, folder: Path) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        own = folder / str(seed)
        own.mkdir()
        TASKS[seed % len(TASKS)](chance, own)


def test_labels_of_generated_tables(tmp_path):
    compare(range(24), tmp_path)


@pytest.mark.slow
def test_labels_of_many_generated_tables(tmp_path):
    compare(range(24, 224), tmp_path)
