"""RoBERTa's byte-level tokenizer: blanks before words, characters of several tokens, words as in running text."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer, processors

from flaxbert.pipelines import Aggregation, EntityRecognitionPipeline, QuestionAnsweringPipeline
from flaxbert.text.pieces import encode_texts
from flaxbert.text.tags import TagScheme
from flaxbert.text.windows import WindowingOptions, question_windows
from flaxbert.tokenizer import WordPieceTokenizer
from tests.flaxbert.reference_folders import loaded
from train.data.tagged_examples import LabelledPieces, TokenLabelling, encode_sentences
from train.data.tagged_sentences import TaggedSentence

TEXTS = ["Paris is the capital of France.", "  Leading 東京 café 👩‍👩‍👧 x\u200b  the  end ", "naïve—“quote”\n\nnew"]
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def folder_of(head, folder, **settings):
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(TEXTS * 20, vocab_size=330, special_tokens=special, show_progress=False)
    backend._tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    config = transformers.RobertaConfig(
        vocab_size=330,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=130,
        initializer_range=0.5,
        **{"type_vocab_size": 1} | settings,
    )
    torch.manual_seed(0)
    getattr(transformers, head)(config).eval().save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    return folder


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    names = dict(enumerate(TAGS))
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    return folder_of("RobertaForTokenClassification", tmp_path_factory.mktemp("tagger"), **labels)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("aggregation", Aggregation)
def test_entities_equal_transformers(tagger, aggregation):
    model, tokenizer = loaded("RobertaForTokenClassification", tagger)
    reference = transformers.pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy=aggregation.value, device="cpu"
    )
    # Without a blank between them, a word and its full stop are one word for the reference.
    texts = TEXTS if aggregation is Aggregation.SIMPLE else ["Paris is the capital of France .", "naïve 東京 café end"]
    found = EntityRecognitionPipeline.from_pretrained(tagger, aggregation=aggregation)(texts)
    for text, tagged in zip(texts, found, strict=True):
        wanted = [(entry["start"], entry["end"], entry["entity_group"], entry["word"]) for entry in reference(text)]
        assert [(entity.start, entity.end, entity.type, entity.word) for entity in tagged.entities] == wanted


def test_an_accent_belongs_to_the_word_of_its_letter(tagger):
    tokenizer, text = WordPieceTokenizer.load(tagger), "cafe\u0301 e\u0301a b"
    (pieces,) = encode_texts(tokenizer, [text])
    words = [text[pieces.offsets[pieces.words == word, 0].min() :][:3] for word in dict.fromkeys(pieces.words.tolist())]
    assert words == ["caf", "e\u0301a", "b"]


def test_words_of_a_sentence_have_the_tokens_of_running_text(tagger):
    tokenizer = WordPieceTokenizer.load(tagger)
    words = ("Paris", "café", "東京", ".", "x\u200b", "Paris", "\u0301a")
    labelling = TokenLabelling({"O": 0}, TagScheme.IOB2, max_length=64, overlap=0, labelled=LabelledPieces.FIRST)
    sentence = TaggedSentence(words, ("O",) * len(words), source="")
    examples = encode_sentences([sentence], tokenizer, labelling)
    (ids,) = examples.examples.ids
    assert ids.tolist() == transformers.AutoTokenizer.from_pretrained(tagger)(" ".join(words)).input_ids
    (pieces,) = encode_texts(tokenizer, [" ".join(words)])
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    assert pieces.offsets[examples.position - 1, 0].tolist() == starts.tolist()


def test_answers_are_whole_characters_without_blanks(tmp_path):
    folder = folder_of("RobertaForQuestionAnswering", tmp_path / "qa", type_vocab_size=2)
    tokenizer, context = WordPieceTokenizer.load(folder), TEXTS[1]
    windows = question_windows(tokenizer, ["the  end?"], [context], WindowingOptions(max_length=120, step=64))
    (window,) = windows[0]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)("the  end?", context)
    assert window.ids.tolist() == theirs.input_ids
    for answer in ("Leading", "東京", "café", "👩‍👩‍👧", "the  end", "x\u200b"):
        start = context.index(answer)
        first, last = window.positions(start, start + len(answer)) or (0, 0)
        spans = window.offsets[[first - window.first, last - window.first]]
        assert context[spans[0, 0] : spans[1, 1]] == answer
    model, reference_tokenizer = loaded("RobertaForQuestionAnswering", folder)
    question = "the  end?"
    encoding = reference_tokenizer(question, context, return_tensors="pt")
    with torch.no_grad():
        out = model(**encoding)
    scores = out.start_logits[0][:, None] + out.end_logits[0][None]
    inside = torch.tensor([sequence == 1 for sequence in encoding.sequence_ids(0)])
    scores[~(inside[:, None] & inside[None])] = -torch.inf
    spans = encoding.encodings[0].offsets
    order = np.argsort(-torch.triu(scores - scores[inside][:, inside].min() + 1).numpy(), axis=None)
    texts = (context[spans[i // len(spans)][0] : spans[i % len(spans)][1]].strip() for i in order)
    wanted = next(text for text in texts if text)
    (answer,) = QuestionAnsweringPipeline.from_pretrained(folder, max_answer=120, n_best=120)([(question, context)])
    assert answer.text == wanted
