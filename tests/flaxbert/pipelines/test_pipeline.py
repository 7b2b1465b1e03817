"""Behaviour of all pipelines: order, streaming, number of compilations, errors."""

import concurrent.futures
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import flaxbert
from flaxbert.pipelines import (
    FillMaskPipeline,
    MultipleChoicePipeline,
    NextSentencePipeline,
    SentenceEmbeddingPipeline,
    TextClassificationPipeline,
    pipeline,
)
from flaxbert.pipelines.batching import length_buckets
from tests.flaxbert.reference_folders import saved

TEXTS = [("one two three four five six seven eight nine ten " * 4)[: 3 + 9 * (i * 7 % 13)] for i in range(41)]


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    place = tmp_path_factory.mktemp("classifier")
    return saved("BertForSequenceClassification", place, data_dir / "tokenizers" / "bert-base-uncased", num_labels=3)


@pytest.fixture(scope="module")
def classify(folder):
    return TextClassificationPipeline.from_pretrained(folder, batch_size=4, read_ahead=10)


@dataclasses.dataclass(frozen=True, eq=False)
class Counted(TextClassificationPipeline):
    """Says how often it is traced, which is how often it is compiled."""

    traced: list = dataclasses.field(default_factory=list)

    def _forward(self, params, batch):
        self.traced.append(batch["input_ids"].shape)
        return super()._forward(params, batch)


def test_one_compilation_per_length(classify):
    counted = Counted(classify.model, classify.params, classify.tokenizer, batch_size=4, read_ahead=10)
    texts = [*TEXTS, "one more"]
    first = counted(texts)
    seen = list(counted.traced)
    assert counted(texts) == first
    counted(texts[:5])
    assert len(set(seen)) == len(seen) and {size for size, _ in seen} == {4}
    assert {length for _, length in seen} == set(length_buckets(24)) == {16, 24}
    assert counted.traced == seen


def test_results_do_not_depend_on_the_batch(classify):
    alone = dataclasses.replace(classify, batch_size=1, read_ahead=1)
    assert len({len(text) for text in TEXTS}) > 10
    for together, single in zip(classify(TEXTS), alone(TEXTS), strict=True):
        assert [label.name for label in together.labels] == [label.name for label in single.labels]
        np.testing.assert_allclose(
            [label.score for label in together.labels], [label.score for label in single.labels], atol=1e-6
        )


def test_threads_with_one_tokenizer_do_not_change_each_others_results(classify):
    both = [dataclasses.replace(classify, max_length=9), classify]
    wanted = [pipeline(TEXTS) for pipeline in both]
    assert wanted[0] != wanted[1]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pipeline: pipeline(TEXTS), both * 4)) == wanted * 4


def test_stream_reads_at_most_read_ahead_inputs(classify):
    read = []

    def texts():
        for text in TEXTS:
            read.append(text)
            yield text

    answers = classify.stream(texts())
    assert read == []
    next(answers)
    assert len(read) == 10
    for _ in range(9):
        next(answers)
    assert len(read) == 10
    next(answers)
    assert len(read) == 20
    assert len(list(answers)) == len(TEXTS) - 11 and classify([]) == []


def test_stream_reads_no_more_characters_ahead_than_fit_into_memory(classify, monkeypatch):
    monkeypatch.setattr(pipeline, "_MAX_READ_AHEAD_LENGTH", 100)
    read = []
    answers = classify.stream(read.append(i) or "word " * 12 for i in range(5))
    next(answers)
    assert len(read) == 2
    assert len(list(answers)) == 4 and read == [0, 1, 2, 3, 4]


def test_long_texts_are_truncated(classify):
    long = "word " * 500
    assert classify([long]) == classify(["word " * 22])
    short = dataclasses.replace(classify, max_length=8)
    assert short([long]) == short(["word " * 6])


@pytest.mark.parametrize(
    "texts, error, said",
    [
        (["fine", " \n"], ValueError, r"texts\[1\] is empty"),
        (["fine", 3], TypeError, r"texts\[1\] is 3; expected a text, or a pair"),
        ([("a", None)], TypeError, r"texts\[0\]\[1\] is None; expected a text"),
        ([("a", "b", "c")], TypeError, r"texts\[0\] is .*; expected a text, or a pair"),
        ([*["fine"] * 15, "\ud800"], ValueError, r"texts\[15\] holds a lone surrogate"),
        ("text", TypeError, "the texts are one str, 'text'; give a list"),
    ],
)
def test_errors_name_the_invalid_text(classify, texts, error, said):
    with pytest.raises(error, match=said):
        classify(texts)


def test_errors_name_the_task_of_a_folder_with_another_head(folder, tmp_path):
    holds = "holds a BertForSequenceClassification, good for classify; "
    for pipeline_class, wanted in (
        (FillMaskPipeline, "FillMaskPipeline needs a BertForMaskedLM or BertForPreTraining"),
        (NextSentencePipeline, "NextSentencePipeline needs a BertForNextSentencePrediction or BertForPreTraining"),
        (MultipleChoicePipeline, "MultipleChoicePipeline needs a BertForMultipleChoice"),
        (SentenceEmbeddingPipeline, "SentenceEmbeddingPipeline needs a BertModel"),
    ):
        with pytest.raises(ValueError, match=holds + wanted):
            pipeline_class.from_pretrained(folder)
    config = flaxbert.BertConfig.tiny(vocab_size=7)
    several = shutil.copytree(folder, tmp_path / "several")
    keys = json.loads((several / "config.json").read_text()) | {"architectures": ["BertModel", "BertForMaskedLM"]}
    (several / "config.json").write_text(json.dumps(keys))
    with pytest.raises(ValueError, match="names no architecture, or several; .*--head BertForMaskedLM"):
        FillMaskPipeline.from_pretrained(several)
    with pytest.raises(
        ValueError, match="holds a BertForMaskedLM, good for fill-mask; TextClassificationPipeline needs"
    ):
        TextClassificationPipeline(flaxbert.BertForMaskedLM(config), {}, None)
    with pytest.raises(ValueError, match="BertLMHeadModel, good for generate; "):
        TextClassificationPipeline(flaxbert.BertLMHeadModel(config.replace(is_decoder=True)), {}, None)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"max_length": 25}, "max_length is 25; allowed: 5 to 24"),
        ({"max_length": 4}, "max_length is 4; allowed: 5 to 24"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"read_ahead": 2.5}, "read_ahead is 2.5"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_impossible_options(classify, options, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(classify, **options)


def test_tokenizer_with_a_larger_vocabulary_is_refused(classify):
    model = flaxbert.BertForSequenceClassification(classify.model.config.replace(vocab_size=99))
    with pytest.raises(ValueError, match="30522 tokens and the model 99"):
        TextClassificationPipeline(model, {}, classify.tokenizer)


def test_pairs_need_two_token_types(classify):
    model = flaxbert.BertForSequenceClassification(classify.model.config.replace(type_vocab_size=1))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.parameter_shapes())
    one_type = TextClassificationPipeline(model, params, classify.tokenizer)
    with pytest.raises(ValueError, match="one token type; it takes single texts"):
        one_type([("a", "b")])
    assert one_type(["a"])[0].best.score == pytest.approx(1 / 3)


def test_old_names_give_errors_with_the_new_ones(folder):
    with pytest.raises(ImportError, match="flaxbert.pipelines.FillMask is now flaxbert.pipelines.FillMaskPipeline"):
        from flaxbert.pipelines import FillMask  # noqa: F401
    with pytest.raises(ImportError, match="flaxbert.export.load is now flaxbert.export.load_stablehlo"):
        from flaxbert.export import load  # noqa: F401
    with pytest.raises(TypeError, match="the option window is now named read_ahead"):
        TextClassificationPipeline.from_pretrained(folder, window=10)
