"""Question answering from a file to predictions: a real run, and what is decided before it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import BertForQuestionAnswering

import flaxbert
from flaxbert import cli, losses
from flaxbert.conversion.convert import convert
from flaxbert.pipelines import QuestionAnsweringPipeline
from flaxbert.text.answers import AnswerLogits, RankedAnswers
from flaxbert.tokenizer import SPECIAL_TOKENS
from tests.runs import SMALL
from tests.train.test_loop import with_task
from tests.trees import initial
from train.config import Config, Model, Run
from train.data.batches import EvaluationBatches
from train.data.examples import SpanSequences
from train.distributed import Placement
from train.evaluate import compile_eval_step, evaluate
from train.loop import run
from train.metrics.squad import squad1_metrics, squad2_metrics
from train.optim import Optim
from train.tasks.answer_sets import MatchingRule
from train.tasks.question_answering import QuestionAnswering

NAMES = ["anna", "otto", "rome", "paris", "seven", "nine"]
FILLING = ["the", "old", "town", "by", "river", "saw", "many", "boats", "and", "birds"]


def articles(seed, *, impossible, count=8):
    """The answer is the name in the text, of six; where there is no name, there is no answer."""
    random = np.random.default_rng(seed)
    content = []
    for article in range(count):
        paragraphs = []
        for number in range(8):
            words = random.choice(FILLING, size=int(random.integers(8, 30))).tolist()
            question = {"id": f"{seed}-{article}-{number}", "question": "who is it?", "answers": []}
            if impossible:
                question["is_impossible"] = number % 4 == 3
            if not (impossible and number % 4 == 3):
                place, name = int(random.integers(1, len(words))), str(random.choice(NAMES))
                question["answers"] = [{"text": name, "answer_start": len(" ".join(words[:place])) + 1}]
                words.insert(place, name)
            paragraphs.append({"context": " ".join(words), "qas": [question]})
        content.append({"title": f"article {article}", "paragraphs": paragraphs})
    return {"version": "v2.0" if impossible else "1.1", "data": content}


def config_in(folder, *, impossible=True, **task):
    vocabulary = [*SPECIAL_TOKENS, *NAMES, *FILLING, "who", "is", "it", "?"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    for seed, name in enumerate(("train", "dev", "test")):
        content = articles(seed, impossible=impossible, count=8 if name == "train" else 3)
        (folder / f"{name}.json").write_text(json.dumps(content))
    files = {name: str(folder / f"{name}.json") for name in ("train", "dev")}
    settings = {**files, "tokenizer": folder / "vocab.txt", "max_length": 24, "max_query": 8, "window_step": 6, **task}
    return Config(
        QuestionAnswering(**settings),
        Run(folder=folder / "run", batch_size=16, steps=120, log_every=40),
        Model(sizes=SMALL, dropout=0.0),
        Optim(learning_rate=4e-3, warmup=0.1),
    )


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("head", ["linear", pytest.param("pointer", marks=pytest.mark.slow)])
def test_a_run_learns_to_answer_and_to_say_that_there_is_no_answer(tmp_path, capsys, head):
    config = config_in(tmp_path, test=str(tmp_path / "test.json"), head=head)
    folder = run(config)
    printed = capsys.readouterr().out
    assert "train without answer 16" in printed and "predictions_test.json" in printed
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {line["name"]: line for line in lines if line["kind"] == "eval"}
    for name in ("dev", "test"):
        content = json.loads((tmp_path / f"{name}.json").read_text())["data"]
        rows = [(p["context"], p["qas"][0]) for article in content for p in article["paragraphs"]]
        predictions = read(folder, f"predictions_{name}.json")
        odds, best = read(folder, f"null_odds_{name}.json"), read(folder, f"nbest_predictions_{name}.json")
        assert list(predictions) == list(odds) == list(best) == [row["id"] for _, row in rows]
        # A word at random would be right once in eight or more; always "no answer" once in four.
        assert found[name]["exact"] > 80 and found[name]["HasAns_exact"] > 75 and found[name]["NoAns_exact"] > 75
        # The figures are those of the files.
        gold = {row["id"]: [a["text"] for a in row["answers"]] for _, row in rows}
        texts = {n: next(c["text"] for c in candidates if c["text"]) for n, candidates in best.items()}
        threshold = found[name]["threshold"]
        assert predictions == {n: "" if odds[n] > threshold else text for n, text in texts.items()}
        expected = squad2_metrics(texts, gold, odds, threshold=threshold)
        assert expected.items() <= found[name].items()
        for context, row in rows:
            candidates = best[row["id"]]
            assert sum(c["probability"] for c in candidates) == pytest.approx(1)
            scores = [c["start_logit"] + c["end_logit"] for c in candidates if c["text"]]
            assert scores == sorted(scores, reverse=True)
            assert all(c["text"] in context for c in candidates)
            assert len({c["text"] for c in candidates}) == len(candidates) <= 21
    # The threshold is that of dev, for both, and told at the end.
    assert f"no answer where null odds exceed {found['dev']['threshold']!r}; the model's folder has this" in printed
    assert found["dev"]["threshold"] == found["test"]["threshold"] == found["dev"]["best_f1_thresh"]
    name = {"linear": "BertForQuestionAnswering", "pointer": "BertForPointerQuestionAnswering"}[head]
    assert type(flaxbert.from_pretrained(folder / "model")[0]).__name__ == name
    # `flaxbert predict` takes windows and limits from the model's folder, and gives the answers of the run.
    # The threshold is the null odds of one question, which another program may round up.
    threshold = str(found["dev"]["threshold"] + 1e-4)
    flags = ["--null-threshold", threshold, "--output", str(tmp_path / "answers.jsonl")]
    source = ["--file", str(tmp_path / "dev.json"), "--model", str(folder / "model")]
    assert cli.main(["predict", "answer", *source, *flags]) == 0
    answers = [json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answers == list(read(folder, "predictions_dev.json").values())
    pipeline = QuestionAnsweringPipeline.from_pretrained(folder / "model")
    assert (pipeline.max_length, pipeline.max_query, pipeline.step, pipeline.overlap) == (24, 8, 6, None)
    assert (pipeline.n_best, pipeline.max_answer) == (20, 30)
    assert pipeline.null_threshold == found["dev"]["threshold"]
    pipeline = QuestionAnsweringPipeline.from_pretrained(folder / "model", overlap=2, max_answer=3)
    assert (pipeline.max_length, pipeline.step, pipeline.overlap, pipeline.max_answer) == (24, None, 2, 3)
    convert(folder / "model", tmp_path / "copy")
    assert QuestionAnsweringPipeline.from_pretrained(tmp_path / "copy").step == 6


def test_examples_have_an_answer_where_the_model_always_gives_one(tmp_path):
    config = config_in(tmp_path, impossible=True)
    for trained, count in ((True, 24), (False, 18)):
        answers = dataclasses.replace(config.task, impossible=trained).prepare(config).sets["dev"]
        found = {question.id: RankedAnswers((), 0.0) for question in answers.questions}
        lines = answers.examples(found, 0.0, 100)
        assert len(lines) == count and any("(in the file: no answer)" in line for line in lines) == trained


@pytest.mark.parametrize("threshold", [float("nan"), -float("inf")])
def test_a_threshold_that_no_model_can_have_is_refused(tmp_path, threshold):
    with pytest.raises(ValueError, match=f"null_threshold is {threshold}; give a number, inf for"):
        config_in(tmp_path, null_threshold=threshold)


def test_a_pointer_trains_and_predicts(tmp_path, capsys):
    """Metrics, files and `flaxbert predict` take the beam over starts, and predict the order of the two texts."""
    config = config_in(tmp_path, head="pointer", context_first=True, examples=4)
    folder = run(dataclasses.replace(config, run=dataclasses.replace(config.run, steps=4, log_every=4)))
    assert type(flaxbert.from_pretrained(folder / "model")[0]) is flaxbert.BertForPointerQuestionAnswering
    candidates = read(folder, "nbest_predictions_dev.json")
    printed = capsys.readouterr().out
    assert "model (transformers loads its encoder)" in printed
    predictions, (lowest, *_) = read(folder, "predictions_dev.json"), articles(1, impossible=True, count=1)["data"]
    shown = [line for line in printed.splitlines() if line.startswith("dev: ")]
    (wanted,) = lowest["paragraphs"][0]["qas"][0]["answers"]
    assert len(shown) == 4 and shown[0].endswith(f"(in the file: {wanted['text']})")
    assert shown[0].startswith(f"dev: who is it? -> {predictions['1-0-0'] or 'no answer'} (")
    # Log-probabilities of starts and ends.
    assert all(c["start_logit"] < 0 and c["end_logit"] < 0 for found in candidates.values() for c in found)
    flags = ["--null-threshold", "1e9", "--output", str(tmp_path / "answers.jsonl")]
    source = ["--file", str(tmp_path / "dev.json"), "--model", str(folder / "model")]
    assert cli.main(["predict", "answer", *source, *flags]) == 0
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    for answer, found in zip(answers, candidates.values(), strict=True):
        best = next(c for c in found if c["text"])
        assert answer["text"] == best["text"]
        assert [c["text"] for c in answer["candidates"]] == [c["text"] for c in found][:5]


def test_a_pointer_is_not_distilled(tmp_path):
    config = config_in(tmp_path, head="pointer")
    task = config.task.prepare(config)
    with pytest.raises(ValueError, match="a pointer is not distilled: give --task.head linear"):
        task.soft_targets(None, {})


@pytest.mark.slow
def test_a_run_where_all_have_answers(tmp_path):
    config = config_in(tmp_path, impossible=False)
    folder = run(dataclasses.replace(config, run=dataclasses.replace(config.run, steps=4, log_every=2)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (found,) = [line for line in lines if line["kind"] == "eval"]
    predictions = read(folder, "predictions_dev.json")
    content = json.loads((tmp_path / "dev.json").read_text())["data"]
    rows = [p["qas"][0] for article in content for p in article["paragraphs"]]
    expected = squad1_metrics(predictions, {row["id"]: [a["text"] for a in row["answers"]] for row in rows})
    assert expected.items() <= found.items() and "threshold" not in found and all(predictions.values())
    assert not (folder / "null_odds_dev.json").exists()


def logits_of(task, sizes):
    """What a fresh model says of dev, and its scores, in batches of these sizes."""
    model = task.architecture(task.config)
    params = initial(model, jnp.zeros((1, 4), jnp.int32))
    placement = Placement.of(Config.mesh)
    eval_step = compile_eval_step(lambda params, batch: task.eval_step(model, params, batch), placement)
    for size in sizes:
        batches = dataclasses.replace(task.evaluations["dev"], size=size)
        sized = dataclasses.replace(task, evaluations={"dev": batches})
        found = evaluate(eval_step, params, batches, placement)
        yield found, sized.compute_metrics("dev", found, earlier={}), sized


def test_evaluation_does_not_depend_on_the_size_of_its_batches(tmp_path):
    config = config_in(tmp_path)
    results = list(logits_of(config.task.prepare(config), (8, 24)))
    (first, scores, _), (second, others, _) = results
    assert first.means["loss"] == pytest.approx(second.means["loss"], rel=1e-5)
    for name, value in scores.items():
        assert others[name] == pytest.approx(value, abs=1e-4), name


def test_loss_and_logits_equal_pytorch(tmp_path):
    config = config_in(tmp_path)
    task = config.task.prepare(config)
    model = task.architecture(task.config)
    params = initial(model, jnp.zeros((1, 4), jnp.int32), seed=1)
    flaxbert.save_pretrained(tmp_path / "model", model, params)
    reference = BertForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    batch = next(batch for batch in map(task.train.__getitem__, range(9)) if batch["weight"].all())
    given = {name: torch.tensor(value, dtype=torch.long) for name, value in batch.items() if name != "weight"}
    with torch.no_grad():
        expected = reference(**given)
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    np.testing.assert_allclose(task.loss(model, params, arrays, None).mean, expected.loss.item(), rtol=1e-5)
    measured = task.eval_step(model, params, arrays)
    np.testing.assert_allclose(measured.metrics["loss"].mean, expected.loss.item(), rtol=1e-5)
    np.testing.assert_allclose(measured.outputs.start_logits, expected.start_logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(measured.outputs.end_logits, expected.end_logits.numpy(), atol=1e-5)


def test_targets_of_windows(tmp_path):
    config = config_in(tmp_path)
    task = config.task.prepare(config)
    spans = task.train.examples
    assert isinstance(spans, SpanSequences) and len(spans) > 64  # some contexts have several windows
    token = config.task.require_tokenizer(config).token_id
    names = {token(name) for name in NAMES}
    for ids, (start, end) in zip(spans.ids, spans.positions, strict=True):
        if start:
            assert start == end and ids[start] in names
        else:  # a window without the answer points to [CLS]
            assert end == 0 and not names & set(ids.tolist())
    assert {bool(start) for start, _ in spans.positions} == {True, False}


@pytest.mark.parametrize("ends", [("", "\u0301"), ("", "\u0e48"), ("\u200b", ""), ("\u0301", "\u200d")])
def test_marks_at_the_ends_of_an_answer_are_no_missing_answer(tmp_path, ends):
    config = config_in(tmp_path, impossible=False)
    text = ends[0] + "rome" + ends[1]
    questions = [
        {"id": str(i), "question": "who is it?", "answers": [{"text": text, "answer_start": len(before)}]}
        for i, before in enumerate(("", "the old "))
    ]
    contexts = [text + " river", "the old " + text]
    articles = [{"paragraphs": [{"context": c, "qas": [q]}]} for c, q in zip(contexts, questions, strict=True)]
    (tmp_path / "train.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    spans = config.task.prepare(config).train.examples
    rome = config.task.require_tokenizer(config).token_id("rome")
    assert [ids[start : end + 1].tolist() for ids, (start, end) in zip(spans.ids, spans.positions, strict=True)] == [
        [rome],
        [rome],
    ]


def test_filling_counts_in_no_loss():
    ids = [np.arange(5, dtype=np.int32)] * 3
    spans = SpanSequences(ids=ids, types=ids, positions=np.array([[0, 0], [2, 3], [4, 4]], np.int32))
    batch = spans.batch(np.array([1, 2]), size=4, pad_id=0, lengths=(8,))
    assert batch["start_positions"].tolist() == [2, 4, 8, 8] and batch["end_positions"].tolist() == [3, 4, 8, 8]
    logits = jax.random.normal(jax.random.key(0), (2, 4, 8))
    places = batch["start_positions"], batch["end_positions"]
    found = losses.question_answering(logits[0], logits[1], *places)
    alone = losses.question_answering(logits[0, :2], logits[1, :2], *(place[:2] for place in places))
    assert found.weight.tolist() == [2, 2]
    np.testing.assert_allclose(found.sum, alone.sum, rtol=1e-6)


def test_a_test_set_without_answers_is_predicted_and_not_scored(tmp_path):
    config = config_in(tmp_path)
    content = articles(1, impossible=True, count=3)
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            (question,) = paragraph["qas"]
            paragraph["qas"] = [{"id": question["id"], "question": question["question"], "answers": []}]
    (tmp_path / "dev.json").write_text(json.dumps(content))
    task = config.task.prepare(config)
    ((found, scores, sized),) = logits_of(task, (8,))
    assert scores == {} and found.means == {}
    sized.write_predictions(None, None, tmp_path, {"dev": found})
    assert len(read(tmp_path, "predictions_dev.json")) == len(read(tmp_path, "null_odds_dev.json")) == 24


def test_held_out_articles_and_excluded_questions(tmp_path):
    config = config_in(tmp_path, dev=None, validation_split=0.3, exclude=str(tmp_path / "train.json"))
    with pytest.raises(ValueError, match="no question is left to train on"):
        config.task.prepare(config)
    task = with_task(config, exclude=str(tmp_path / "test.json")).task.prepare(config)
    assert task.facts["train questions"] == 40 and task.facts["dev questions"] == 24
    assert task.facts["train questions excluded"] == 0
    dev = {question.title for question in task.sets["dev"].questions}
    assert len(dev) == 3
    # Only questions that have answers.
    task = with_task(config, exclude=None, impossible=False).task.prepare(config)
    assert task.facts["train questions not used"] == 10 and not task.sets["dev"].trained_on_no_answer
    assert task.facts["train without answer"] == 0 and task.facts["dev without answer"] == 6
    # What the model does not learn counts in no loss.
    dev, batches = task.sets["dev"], task.evaluations["dev"]
    windows = [q.impossible for q, own in zip(dev.questions, dev.windows, strict=True) for _ in own]
    assert (batches.examples.positions[:, 0] > 24).tolist() == windows and any(windows)


def test_settings_and_files_that_cannot_be_used(tmp_path):
    config = config_in(tmp_path)
    for changes, message in [
        ({"window_overlap": 3}, "exactly one of step"),
        ({"n_best": 1}, "at least 2"),
        ({"max_query": 30}, "max_query is 30"),
    ]:
        with pytest.raises(ValueError, match=message):
            with_task(config, **changes)
    with pytest.raises(ValueError, match="needs one of every question"):
        with_task(config, rule=MatchingRule.CMRC).task.prepare(config)
    content = {"data": [{"paragraphs": [{"context": "a b", "qas": [{"id": "1", "question": "who?"}]}]}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="none of its questions has an answer"):
        config.task.prepare(config)


def test_chinese_is_answered_in_characters(data_dir, tmp_path):
    config = config_in(tmp_path)
    config = with_task(
        dataclasses.replace(config, model=Model(sizes=SMALL.replace(max_position_embeddings=256))),
        train=str(data_dir / "tasks/cmrc2018/cmrc2018_trial.squadstyle.json"),
        dev=None,
        validation_split=0.1,
        tokenizer=data_dir / "vocab/bert-base-chinese-vocab.txt",
        max_length=256,
        max_query=64,
        window_step=64,
        max_answer=256,
        rule=MatchingRule.CMRC,
    )
    task = config.task.prepare(config)
    assert task.facts["train answers with a wrong offset, repaired"] == 5
    # Scores that point to each answer, so that only one is missed that no window holds.
    asked = task.sets["dev"]
    logits = []
    for question, windows in zip(asked.questions, asked.windows, strict=True):
        answer = question.answers[0]
        for window in windows:
            scores = np.zeros((2, 256))
            places = window.positions(answer.start, answer.start + len(answer.text))
            if places is not None:
                scores[[0, 1], places] = 10.0
            logits.append(AnswerLogits(*scores))
    found = asked.compute_metrics(asked.ranked_answers(logits), 0.0)
    assert found["exact"] > 95 and found["f1"] > found["exact"] and set(found) == {"exact", "f1", "average"}
    assert isinstance(task.evaluations["dev"], EvaluationBatches)
