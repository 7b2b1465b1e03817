"""Pipelines of BERT models with the Unigram tokenizer of XLM-R, such as those of multilingual-e5."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from flaxbert.pipelines import (
    Aggregation,
    EntityRecognitionPipeline,
    FillMaskPipeline,
    QuestionAnsweringPipeline,
    TextClassificationPipeline,
)
from tests.flaxbert.reference_folders import loaded, saved

WORDS = ["Paris", "is", "the", "capital", "of", "France", "Who", "東京"]
TEXTS = ["Paris is the capital of France.", "Who is  東京, the café?"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unigram")
    pieces = ["▁", *(f"▁{word}" for word in WORDS), *sorted({*"".join(WORDS), *"caf.,?abcdefghinop"})]
    vocabulary = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [(piece, -2.0 if piece[1:] else -5.0) for piece in pieces]
    backend = Tokenizer(models.Unigram([*vocabulary, ("<mask>", 0.0)], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    backend.save(str(folder / "tokenizer.json"))
    roles = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
    config = {f"{role}_token": token for role, token in roles.items()} | {"tokenizer_class": "XLMRobertaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def model_folder(name, folder, tokenizer_folder, **settings):
    return saved(name, folder, tokenizer_folder, vocab_size=80, pad_token_id=1, **settings)


def test_filled_masks_equal_transformers(tokenizer_folder, tmp_path):
    folder = model_folder("BertForMaskedLM", tmp_path / "m", tokenizer_folder)
    model, tokenizer = loaded("BertForMaskedLM", folder)
    reference = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu", top_k=40)
    for text in ("Paris is <mask> capital.", "<mask> is the capital."):
        (fillings,) = FillMaskPipeline.from_pretrained(folder, top_k=40)([text])[0].masks
        wanted = reference(text)
        assert [filling.id for filling in fillings] == [entry["token"] for entry in wanted]
        for filling, entry in zip(fillings, wanted, strict=True):
            if entry["token"] > 4 and filling.token.startswith("▁") and filling.token[1:]:
                assert filling.text == entry["sequence"]


def test_classes_of_pairs_equal_transformers(tokenizer_folder, tmp_path):
    folder = model_folder("BertForSequenceClassification", tmp_path / "m", tokenizer_folder)
    model, tokenizer = loaded("BertForSequenceClassification", folder)
    with torch.no_grad():
        logits = model(**tokenizer(*TEXTS, return_tensors="pt", truncation=True)).logits.numpy()[0]
    (found,) = TextClassificationPipeline.from_pretrained(folder)([(TEXTS[0], TEXTS[1])])
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([label.score for label in found.labels], np.sort(expected)[::-1], atol=1e-5)


def test_answers_and_entities_equal_transformers(tokenizer_folder, tmp_path):
    folder = model_folder("BertForQuestionAnswering", tmp_path / "qa", tokenizer_folder, positions=64)
    model, tokenizer = loaded("BertForQuestionAnswering", folder)
    with torch.no_grad():
        outputs = model(**tokenizer(TEXTS[1], TEXTS[0], return_tensors="pt"))
    encoding = tokenizer(TEXTS[1], TEXTS[0]).encodings[0]
    spans = {
        (start, end): float(outputs.start_logits[0, start] + outputs.end_logits[0, end])
        for start in range(len(encoding))
        for end in range(start, len(encoding))
        if encoding.sequence_ids[start] == encoding.sequence_ids[end] == 1
    }
    start, end = max(spans, key=spans.__getitem__)
    (answer,) = QuestionAnsweringPipeline.from_pretrained(folder, max_answer=64, n_best=64)([(TEXTS[1], TEXTS[0])])
    assert answer.text == TEXTS[0][encoding.offsets[start][0] : encoding.offsets[end][1]]

    folder = model_folder("BertForTokenClassification", tmp_path / "tags", tokenizer_folder, num_labels=3)
    model, tokenizer = loaded("BertForTokenClassification", folder)
    reference = transformers.pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple", device="cpu"
    )
    for text, found in zip(
        TEXTS, EntityRecognitionPipeline.from_pretrained(folder, aggregation=Aggregation.SIMPLE)(TEXTS), strict=True
    ):
        wanted = [(entry["start"], entry["end"], entry["entity_group"]) for entry in reference(text)]
        assert [(entity.start, entity.end, entity.type) for entity in found.entities] == wanted
