"""Token classification from files to predictions: pieces and words, windows, loss, a run that learns."""

import dataclasses
import functools
import itertools
import json

import chex
import jax
import numpy as np
import pytest
from transformers import BertForTokenClassification

from flaxbert.text.tags import TagScheme
from flaxbert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from tests.runs import SMALL
from tests.trees import initial
from train.config import Config, Model, Run
from train.data.tagged_examples import LabelledPieces, TokenLabelling, encode_sentences, infer_tags, tag_ids
from train.data.tagged_sentences import TaggedSentence, read_tagged_sentences
from train.distributed import Placement
from train.evaluate import compile_eval_step, evaluate
from train.loop import run
from train.metrics.entities import entity_scores
from train.optim import Optim
from train.tasks.token_classification import TokenClassification, most_frequent_tags

WORDS = ["mr", "may", "in", "it", "rains", "new", "york", "town", "an", "##na", "##town", "bo", "##b", "\u200b"]
BLANK = "\u200b"  # of the category that BERT's tokenizer drops


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer.from_tokens([*SPECIAL_TOKENS, *WORDS[:-1]], lowercase=True)


def cut(tokenizer, sentences, *, scheme=TagScheme.IOB2, max_length=32, overlap=4, labelled=LabelledPieces.FIRST):
    labels = infer_tags(sentences, scheme)
    how = TokenLabelling(tag_ids(sentences, labels), scheme, max_length, overlap, labelled)
    return encode_sentences(sentences, tokenizer, how), labels


# Pieces and words.


def test_pieces_and_their_labels(tokenizer):
    words, tags = (BLANK, "mr", "anna", "bobtown", BLANK, "rains"), ("O", "O", "B-PER", "I-PER", "I-PER", "O")
    found, labels = cut(tokenizer, [TaggedSentence(words, tags, "f:1")])
    (ids,), (row,) = found.examples.ids, found.examples.labels
    assert tokenizer.tokens(ids) == ["[CLS]", "mr", "an", "##na", "bo", "##b", "##town", "rains", "[SEP]"]
    assert row.tolist() == [-100, 0, 1, -100, 2, -100, -100, 0, -100]
    assert found.words_without_pieces == 2 and found.position.tolist() == [-1, 1, 2, 4, -1, 7]
    predicted = [np.array([9, 0, 1, 9, 2, 9, 9, 0, 9, 9, 9])]  # padded, and any value where nothing is read
    assert found.tags(predicted, [TaggedSentence(words, tags, "f:1")], labels) == [
        ["O", "O", "B-PER", "I-PER", "O", "O"]
    ]


def test_a_word_without_pieces_does_not_split_an_entity(tokenizer):
    sentence = TaggedSentence(
        ("in", "new", BLANK, BLANK, "york", BLANK, "town"), ("B-X", "B-LOC", *["I-LOC"] * 5), "f:1"
    )
    found, _ = cut(tokenizer, [sentence])
    for predicted, expected in (
        ("O B-LOC I-LOC I-LOC", "O B-LOC I-LOC I-LOC I-LOC I-LOC I-LOC"),
        ("O B-LOC I-LOC O", "O B-LOC I-LOC I-LOC I-LOC O O"),
        ("B-LOC O B-LOC B-LOC", "B-LOC O O O B-LOC O B-LOC"),
        ("O B-X I-LOC I-LOC", "O B-X O O I-LOC I-LOC I-LOC"),
    ):
        names = ["O", "B-LOC", "I-LOC", "B-X"]
        ids = np.array([0, *(names.index(tag) for tag in predicted.split()), 0])
        assert found.tags([ids], [sentence], names) == [expected.split()]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (TagScheme.IOB2, ["B-PER", "I-PER", "B-PER", "I-PER", "I-PER"]),
        (TagScheme.IOB1, ["I-PER", "I-PER", "B-PER", "I-PER", "I-PER"]),
        (TagScheme.BIOES, ["B-PER", "E-PER", "B-PER", "I-PER", "E-PER"]),
    ],
)
def test_all_pieces_of_an_entity_are_tagged_as_one(tokenizer, scheme, expected):
    sentence = TaggedSentence(("anna", "bob", BLANK, "rains"), ("B-PER", "B-PER", "I-PER", "I-PER"), "f:1")
    found, labels = cut(tokenizer, [sentence], scheme=scheme, labelled=LabelledPieces.ALL)
    assert [labels[i] for i in found.examples.labels[0][1:-1]] == expected


@pytest.mark.parametrize("labelled", LabelledPieces)
def test_every_piece_of_a_long_sentence_is_learnt_once_and_every_word_is_predicted(tokenizer, labelled):
    generator = np.random.default_rng(0)
    sentences = []
    for count in (40, 1, 8, 9):
        words = tuple(generator.choice(["mr", "anna", "bobtown", "in", BLANK, "town"], count).tolist())
        tags = tuple("B-PER" if word == "anna" else "O" for word in words)
        sentences.append(TaggedSentence(words, tags, f"f:{count}"))
    found, labels = cut(tokenizer, sentences, max_length=10, overlap=5, labelled=labelled)
    assert len(found.examples) > 10 and found.examples.lengths.max() == 10
    learnt = sum(int((row >= 0).sum()) for row in found.examples.labels)
    pieces = {word: len(tokenizer.piece_ids([word])[0]) for word in {*itertools.chain(*(s.words for s in sentences))}}
    words = [word for sentence in sentences for word in sentence.words if word != BLANK]
    assert learnt == (len(words) if labelled is LabelledPieces.FIRST else sum(pieces[word] for word in words))
    # Were every label predicted, every word would have its tag; and it is read from the word's own first piece.
    assert found.tags(found.examples.labels, sentences, labels) == [list(sentence.tags) for sentence in sentences]
    flat = [word for sentence in sentences for word in sentence.words]
    for word, example, position in zip(flat, found.example, found.position, strict=True):
        if word != BLANK:
            assert found.examples.ids[example][position] == tokenizer.piece_ids([word])[0][0]


def test_real_words_stand_where_their_pieces_are(data_dir):
    tokenizer = WordPieceTokenizer.load(data_dir / "tokenizers" / "chinese-roberta-wwm-ext")
    sentences = read_tagged_sentences(data_dir / "tasks/cluener/train.jsonl")[:500]
    found, labels = cut(tokenizer, sentences, max_length=64)
    assert len(found.examples) == 500 and found.words_without_pieces == 0
    assert found.tags(found.examples.labels, sentences, labels) == [list(sentence.tags) for sentence in sentences]
    assert [len(sentence.words) + 2 for sentence in sentences] == found.examples.lengths.tolist()


def test_the_tag_a_word_has_most_often():
    train = [TaggedSentence(("may", "may", "may", "in"), ("O", "B-PER", "B-PER", "O"), "f:1")]
    train.append(TaggedSentence(("york", "york"), ("I-LOC", "B-LOC"), "f:6"))  # as often: the first by name
    assert most_frequent_tags(train, [TaggedSentence(("york", "may", "rains"), ("O",) * 3, "f:1")]) == [
        ["B-LOC", "B-PER", "O"]
    ]


# From files to predictions.


def sentence_of(generator):
    """`may` is a person after `mr` alone, `town` a place after `in`; `new york` and `anna` always are what they are."""
    parts = [(("mr", "may"), ("O", "B-PER")), (("may",), ("O",)), (("in", "town"), ("O", "B-LOC")), (("town",), ("O",))]
    parts += [(("new", "york"), ("B-LOC", "I-LOC")), (("anna", "bob"), ("B-PER", "I-PER")), (("it", "rains"), "OO")]
    parts += [((BLANK,), ("O",))]
    chosen = [parts[i] for i in generator.integers(0, len(parts), generator.integers(1, 9))]
    return [pair for words, tags in chosen for pair in zip(words, tags, strict=True)]


def write(path, count, seed):
    generator = np.random.default_rng(seed)
    blocks = ["\n".join(map("\t".join, sentence_of(generator))) for _ in range(count)]
    path.write_text("\n\n".join(blocks) + "\n")
    return str(path)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS[:-1]]) + "\n")
    task = TokenClassification(
        train=write(tmp_path / "train.conll", 160, 0),
        dev=write(tmp_path / "dev.conll", 21, 1),
        tokenizer=tmp_path / "vocab.txt",
        max_length=12,
        overlap=4,
    )
    run = Run(folder=tmp_path / "run", batch_size=16, epochs=20, log_every=50)
    return Config(task, run, Model(sizes=SMALL, dropout=0.0), Optim(learning_rate=3e-3))


def prepared(config, **changes):
    return dataclasses.replace(config.task, **changes).prepare(config)


@pytest.mark.usefixtures("optimized")
def test_a_run_finds_the_entities(config, capsys):
    folder = run(config)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (dev,) = [line for line in lines if line["kind"] == "eval"]
    assert dev["f1"] > 0.9 and dev["token_accuracy"] > 0.95
    # The file of predictions has every word, and the scores that were reported.
    sentences = read_tagged_sentences(config.task.dev)
    blocks = (folder / "predictions_dev.conll").read_text().removesuffix("\n").split("\n\n")
    rows = [[line.split("\t") for line in block.split("\n")] for block in blocks]
    assert [tuple(row[0] for row in block) for block in rows] == [sentence.words for sentence in sentences]
    given, predicted = ([[row[column] for row in block] for block in rows] for column in (1, 2))
    assert list(map(tuple, given)) == [sentence.tags for sentence in sentences]
    scores = entity_scores(given, predicted)
    assert [dev["precision"], dev["recall"], dev["f1"]] == pytest.approx(
        [scores.overall.precision, scores.overall.recall, scores.overall.f1]
    )
    report = (folder / "report_dev.md").read_text()
    place = scores.types["LOC"]
    assert f"| LOC | {place.precision:.4f} | {place.recall:.4f} | {place.f1:.4f} | {place.support} |" in report
    # What a table of words would have reached is beside it, and worse.
    baseline = config.task.prepare(config).baseline["dev"].overall.f1
    assert 0.3 < baseline < dev["f1"] - 0.1
    assert f"dev: F1 {dev['f1']:.4f}, each word's most frequent training tag: {baseline:.4f}" in capsys.readouterr().out
    assert f"| dev F1 of each word's most frequent tag | {baseline:.4f}" in (folder / "summary.md").read_text()
    reference = BertForTokenClassification.from_pretrained(folder / "model")
    assert reference.config.id2label == dict(enumerate(["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]))


def test_the_loss_is_a_mean_over_labelled_words_whatever_the_padding(config):
    task = prepared(config)
    model = task.architecture(task.config)
    params = initial(model)
    loss = jax.jit(functools.partial(task.loss, model, key=None))
    examples, rows = task.pieces["train"].examples, np.arange(5)
    found = []
    for size, length in ((5, 12), (8, 40)):
        batch = examples.batch(rows, size=size, pad_id=0, lengths=[length])
        assert batch["input_ids"].shape == batch["labels"].shape == (size, length)
        found.append(loss(params, batch))
    assert found[0].weight == found[1].weight == sum((examples.labels[row] >= 0).sum() for row in rows)
    assert float(found[1].sum) == pytest.approx(float(found[0].sum), rel=1e-5)
    assert float(found[0].mean) == pytest.approx(np.log(5), rel=0.1)  # five tags, nothing learnt


def test_evaluation_does_not_depend_on_the_batch_size(config):
    found, tags = [], []
    for size in (8, 32):
        sized = dataclasses.replace(config, run=dataclasses.replace(config.run, evaluation_batch_size=size))
        task, placement = prepared(sized), Placement.of(config.mesh)
        model = task.architecture(task.config)
        params = initial(model)
        params["classifier"]["kernel"] *= 50.0  # or every word would have the same tag
        eval_step = compile_eval_step(
            lambda params, batch, task=task, model=model: task.eval_step(model, params, batch), placement
        )
        result = evaluate(eval_step, params, task.evaluations["dev"], placement)
        found.append({**result.means, **task.compute_metrics("dev", result, earlier={})})
        tags.append(task._predicted_tags("dev", result))
    assert found[0].keys() == {"loss", "token_accuracy", "precision", "recall", "f1"}
    assert len({tag for row in tags[0] for tag in row}) > 2
    assert tags[0] == tags[1] and found[0] == pytest.approx(found[1], rel=1e-5)
    assert [len(row) for row in tags[0]] == [len(sentence.words) for sentence in task.sentences["dev"]]


def test_facts(config):
    facts = prepared(config).facts
    assert facts["train sentences"] == 160 and facts["dev sentences"] == 21
    assert facts["labels"] == 5 and facts["scheme"] == "IOB2"
    assert facts["train words without pieces (O)"] > 20 and facts["train windows beyond a sentence's first"] > 5
    assert "dev tags repaired" not in facts


def test_a_share_is_held_out_by_the_seed(config):
    how = {"dev": None, "validation_split": 0.25}
    first, again = prepared(config, **how), prepared(config, **how)
    assert first.sentences == again.sentences and len(first.sentences["dev"]) == 40
    assert first.facts["train sentences"] == 120
    every = read_tagged_sentences(config.task.train)
    held = {sentence.source for sentence in first.sentences["dev"]}
    assert len(held) == 40 and held < {sentence.source for sentence in every}
    assert len(first.pieces["train"].position) == sum(len(s.words) for s in every if s.source not in held)
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1))
    assert {s.source for s in prepared(other, **how).sentences["dev"]} != held


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 10}, "overlap is 10; allowed: 0 to max_length - 3, 9"),
        (
            {"labels": ("O", "B-PER", "I-PER")},
            r"rows can't be used:\s.*is not allowed.*Allowed tags: 'O', 'B-PER'(?s:.*)",
        ),
    ],
)
def test_settings_that_cannot_be(config, settings, message):
    with pytest.raises(ValueError, match=message if "labels" not in settings else "(?s)" + message):
        prepared(config, **settings)


def test_a_scheme_that_is_asked_for(config):
    task = prepared(config, scheme=TagScheme.BIOES)
    assert task.config.id2label[:5] == ("O", "B-LOC", "I-LOC", "E-LOC", "S-LOC")
    assert ("new", "E-LOC") not in (
        pairs := {p for s in task.sentences["dev"] for p in zip(s.words, s.tags, strict=True)}
    )
    assert {("new", "B-LOC"), ("york", "E-LOC"), ("town", "S-LOC")} <= pairs
    plain = prepared(config)
    chex.assert_trees_all_equal(task.pieces["dev"].position, plain.pieces["dev"].position)
    assert task.baseline["dev"].types.keys() == plain.baseline["dev"].types.keys()
