"""Multiple choice: real files, choices of unequal number, a run that learns, what is refused."""

import dataclasses
import json

import datasets
import jax
import numpy as np
import pytest
import torch
import transformers

from flaxbert.text.choices import ChoiceColumns
from tests.runs import SMALL
from tests.train.test_loop import records
from tests.trees import initial
from train.config import Config, Model, Run
from train.data.bad_rows import BadRows
from train.data.choice_questions import read_choice_questions
from train.loop import run
from train.optim import Optim
from train.tasks.multiple_choice import MultipleChoice

WORDS = ["red", "blue", "green", "cat", "dog", "cow", "which"]


def test_real_files(data_dir):
    tasks = data_dir / "tasks"
    copa = read_choice_questions(tasks / "superglue_copa" / "train.jsonl")
    assert len(copa) == 368 and copa[0].context == "My body cast a shadow over the grass." and copa[0].label == 0
    assert copa[0].choices == tuple(
        f"What was the cause of this? The {end}." for end in ("sun was rising", "grass was cut")
    )
    cosmos = read_choice_questions(tasks / "cosmosqa" / "valid.csv")
    assert len(cosmos) == 2985 and {len(question.choices) for question in cosmos} == {4}
    assert {question.label for question in cosmos} == {0, 1, 2, 3}
    test = read_choice_questions(tasks / "superglue_copa" / "test.jsonl")
    assert len(test) == 500


def test_swag_and_race(tmp_path):
    swag = {"sent1": "A drum.", "sent2": "It", **{f"ending{i}": f"end {i}" for i in range(10)}, "label": 9}
    (tmp_path / "swag.jsonl").write_text(json.dumps(swag))
    (found,) = read_choice_questions(tmp_path / "swag.jsonl")
    assert found.choices == tuple(f"It end {i}" for i in range(10)) and found.label == 9  # 10 after 9, not after 1
    race = [{"article": "A.", "question": "Q?", "options": ["a", "b", "c"][:n], "answer": "B"} for n in (3, 2)]
    (tmp_path / "race.jsonl").write_text("\n".join(map(json.dumps, race)))
    found = read_choice_questions(tmp_path / "race.jsonl")
    assert [question.choices for question in found] == [("Q? a", "Q? b", "Q? c"), ("Q? a", "Q? b")]
    assert [question.label for question in found] == [1, 1]
    (tmp_path / "own.csv").write_text('what,yes,no,right\n"Is it?",It is,"",2\n"Is it?",It is,No,2\n')
    columns = ChoiceColumns(question="what", choices=("yes", "no"), label="right")
    with pytest.raises(ValueError, match=r"own.csv:2: 1 choice\(s\) in 'yes', 'no'"):
        read_choice_questions(tmp_path / "own.csv", columns=columns, first_label=1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"premise": "P", "choice1": "a", "choice2": "b", "label": 2},
            "'label' is 2; of 2 choices it must be 0 to 1, or A to B",
        ),
        ({"premise": "P", "choice1": "", "choice2": "b", "label": 0}, "an empty choice before 'choice2'"),
        ({"premise": " ", "choice1": "a", "choice2": "b", "label": 0}, "'premise': nothing but blanks"),
        ({"premise": "P", "choice1": "a", "choice2": 3, "label": 0}, "'choice2' is 3, expected a string"),
        (
            {"premise": "P", "first": "a", "second": "b", "label": 0},
            "columns found: 'premise', 'first', 'second', 'label'; none known as choices",
        ),
        ({"choice1": "a", "choice2": "b", "label": 0}, "none known as a context or a question: name one"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    (tmp_path / "bad.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        read_choice_questions(tmp_path / "bad.jsonl")


@pytest.fixture
def config(tmp_path):
    """The right choice is the one whose animal the context names; questions have two or three choices."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    chance = np.random.default_rng(0)
    rows = []
    for i in range(120):
        animals = chance.permutation(WORDS[3:6])[: 2 + i % 2].tolist()
        label = int(chance.integers(len(animals)))
        colours = chance.choice(WORDS[:3], size=len(animals) + 1)
        choices = [f"{colour} {animal}" for colour, animal in zip(colours, animals, strict=False)]
        rows.append(
            {"context": f"{colours[-1]} {animals[label]}", "question": "which", "choices": choices, "answer": label}
        )
    for name, part in (("train", rows[:90]), ("dev", rows[90:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "dev")}
    task = MultipleChoice(**files, tokenizer=tmp_path / "vocab.txt", max_length=16)
    sizes = SMALL.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1)
    settings = Run(folder=tmp_path / "run", batch_size=16, epochs=30, log_every=20)
    return Config(task, settings, Model(sizes=sizes), Optim(learning_rate=5e-3))


@pytest.mark.usefixtures("optimized")
def test_a_run_learns_and_transformers_says_the_same(config):
    folder = run(config)
    (found,) = records(folder, "eval")
    assert found["accuracy"] > 0.8
    lines = [line.split("\t") for line in (folder / "predictions_dev.tsv").read_text().splitlines()[1:]]
    assert np.mean([given == said for _, given, said, _ in lines]) == pytest.approx(found["accuracy"])
    # Of each question by itself, without choices that are not there.
    model = transformers.BertForMultipleChoice.from_pretrained(folder / "model").eval()
    task = config.task.prepare(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    loss = 0.0
    for question, line in zip(task.questions["dev"], lines, strict=True):
        pairs = [question.context] * len(question.choices), list(question.choices)
        inputs = tokenizer(*pairs, padding=True, return_tensors="pt")
        with torch.no_grad():
            out = model(**{n: v[None] for n, v in inputs.items()}, labels=torch.tensor([question.label]))
        loss += out.loss.item()
        probabilities = out.logits.softmax(-1)[0].numpy()
        assert int(line[2]) == probabilities.argmax() and float(line[3]) == pytest.approx(probabilities.max(), abs=1e-4)
    assert found["loss"] == pytest.approx(loss / len(lines), abs=1e-5)


def test_what_is_not_there_and_filling_changes_nothing(config):
    task = config.task.prepare(config)
    model = task.architecture(task.config, **config.model.attributes)
    params = initial(model)
    examples = task.evaluations["dev"].examples
    whole = examples.batch(np.arange(30), size=40, pad_id=0, lengths=(16,))
    shorter = examples.batch(np.arange(30), size=30, pad_id=0, lengths=tuple(range(1, 17)))
    assert shorter["input_ids"].shape < (30, 3, 16)
    measure = jax.jit(lambda batch: task.eval_step(model, params, batch))
    found = [measure(batch) for batch in (whole, shorter)]
    losses = [measured.metrics["loss"] for measured in found]
    np.testing.assert_allclose(losses[0].mean, losses[1].mean, atol=1e-6)
    assert losses[0].weight == 30
    probabilities = np.asarray(found[1].outputs)
    two = np.diff(examples.starts) == 2
    assert (probabilities[two, 2] == 0).all() and (probabilities[~two, 2] > 0).all()


def test_training_wants_labels(config, tmp_path):
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"answer": -1})
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"train.jsonl:4: no label\nTraining needs the right choice"):
        config.task.prepare(config)
    swapped = dataclasses.replace(config.task, train=config.task.dev, dev=config.task.train)
    assert swapped.prepare(config).evaluations["dev"].examples.labels[3] == -100


def test_choices_and_labels_as_tables_have_them(tmp_path):
    """Lists in a cell, numbers that pandas writes as 1.0, letters, labels that are missing."""
    lines = ["question,options,label", "\"Is it?\",\"['no', 'yes']\",1.0", '"Is it?","[""no"", ""yes""]",A']
    (tmp_path / "a.csv").write_text("\n".join(lines))
    found = read_choice_questions(tmp_path / "a.csv")
    assert [(question.choices, question.label) for question in found] == [(("no", "yes"), 1), (("no", "yes"), 0)]
    for missing in ('""', "-1", "-1.0", "nan", "-"):
        (tmp_path / "b.csv").write_text("\n".join([*lines, f"\"Is it?\",\"['no', 'yes']\",{missing}"]))
        assert [question.label for question in read_choice_questions(tmp_path / "b.csv")] == [1, 0, None]
        found = read_choice_questions(tmp_path / "b.csv", bad_rows=BadRows.SKIP)
        assert [question.label for question in found] == [1, 0] and found.left_out == 1
    assert found.columns == {"question": "question", "label": "label", "choices": "options"}


def test_classes_of_a_data_set_are_choices(tmp_path):
    import datasets

    names = datasets.ClassLabel(names=["choice1", "choice2"])  # COPA on the hub
    texts = dict.fromkeys(("premise", "choice1", "choice2", "question"), datasets.Value("string"))
    row = {"premise": "P.", "choice1": "a", "choice2": "b", "question": "cause"}
    rows = [{**row, "label": 1}, {**row, "label": 0}, {**row, "label": -1}]
    data = datasets.Dataset.from_list(rows, features=datasets.Features({**texts, "label": names}))
    data.save_to_disk(tmp_path / "set")
    assert [question.label for question in read_choice_questions(tmp_path / "set")] == [1, 0, None]


def test_a_test_set_may_lack_the_named_column_of_labels(tmp_path):
    (tmp_path / "a.csv").write_text("question,choice1,choice2\nIs it?,no,yes\n")
    with pytest.raises(ValueError, match="'gold' must be there"):
        read_choice_questions(tmp_path / "a.csv", columns=ChoiceColumns(label="gold"))
    (question,) = read_choice_questions(tmp_path / "a.csv", columns=ChoiceColumns(label="gold"), training=False)
    assert question.label is None


NAMED = {"text": ["red", "green", "blue"], "label": ["1", "2", "3"]}


@pytest.mark.parametrize("choices", [NAMED, [{"text": t, "label": n} for t, n in zip(*NAMED.values(), strict=True)]])
def test_choices_with_names_as_in_arc(tmp_path, choices):
    path = tmp_path / "arc.jsonl"
    row = {"question": "Which?", "choices": choices, "answerKey": "2"}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "answerKey": ""}) + "\n")
    rows = read_choice_questions(path)
    assert [(row.choices, row.label) for row in rows] == [
        (("red", "green", "blue"), 1),
        (("red", "green", "blue"), None),
    ]
    datasets.Dataset.from_list([{**row, "choices": NAMED}]).save_to_disk(tmp_path / "set")
    assert [row.label for row in read_choice_questions(tmp_path / "set")] == [1]
    path.write_text(json.dumps({**row, "answerKey": "0"}) + "\n")
    with pytest.raises(ValueError, match="'answerKey' is 0; the choices are named '1', '2', '3'"):
        read_choice_questions(path)


def test_letters_of_both_cases_and_the_flag_of_the_first_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Which?", "options": ["red", "green"], "answer": "b"}\n')
    assert read_choice_questions(path)[0].label == 1
    path.write_text('{"question": "Which?", "options": ["red", "green"], "answer": 2}\n')
    with pytest.raises(ValueError, match=r"it must be 0 to 1, or A to B \(--task\.first-label is the first number\)"):
        read_choice_questions(path)
    assert read_choice_questions(path, first_label=1)[0].label == 1
