import json
import shutil

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from flaxbert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer

TEXTS = ["Hello Wörld, naïve 东京 unbelievable!! \u2028 x", "a" * 120, "", "  [MASK] of\tTHE [SEP] "]
SENTENCES = ["the cat sat on the mat", "the dog sat on the log", "cats and dogs"] * 3


def assert_same_ids(ours, reference, max_length=512):
    single = [e.ids for e in ours.encode(TEXTS, [None] * len(TEXTS), max_length=max_length)]
    assert single == reference(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    pairs = TEXTS[::-1]
    found = ours.encode(TEXTS, pairs, max_length=max_length)
    expected = reference(TEXTS, pairs, truncation=True, max_length=max_length)
    assert [e.ids for e in found] == expected["input_ids"]
    assert [e.type_ids for e in found] == expected["token_type_ids"]


@pytest.mark.parametrize("name", ["bert-base-NER", "bert-base-cased", "bert-base-uncased", "chinese-roberta-wwm-ext"])
def test_real_tokenizers_equal_transformers(data_dir, name):
    folder = data_dir / "tokenizers" / name
    assert_same_ids(WordPieceTokenizer.load(folder), AutoTokenizer.from_pretrained(folder))


def test_pieces_alone_say_where_they_come_from(data_dir):
    text = "Wörld, unbelievable!"
    (found,) = WordPieceTokenizer.load(data_dir / "tokenizers" / "bert-base-uncased").encode_pieces([text])
    assert [text[start:end] for start, end in found.offsets][:2] == ["Wörld", ","]
    assert len(found.ids) == len(found.offsets) and "".join(text[a:b] for a, b in found.offsets[2:]) == "unbelievable!"


def test_minilm_tokenizer_without_its_fixed_padding(minilm):
    ours = WordPieceTokenizer.load(minilm)
    assert_same_ids(ours, AutoTokenizer.from_pretrained(minilm))
    assert len(ours.encode(["hi"], [None], max_length=512)[0].ids) == 3


def test_truncation_is_longest_first_and_does_not_stay(data_dir):
    folder = data_dir / "tokenizers" / "bert-base-uncased"
    ours = WordPieceTokenizer.load(folder)
    assert_same_ids(ours, AutoTokenizer.from_pretrained(folder), max_length=16)
    assert len(ours.encode(["word " * 60], [None], max_length=512)[0].ids) == 62


@pytest.mark.parametrize(
    ("name", "lowercase"), [("bert-base-uncased", True), ("bert-base-cased", False), ("bert-base-chinese", True)]
)
def test_real_vocabularies(data_dir, name, lowercase):
    ours = WordPieceTokenizer.load(data_dir / "vocab" / f"{name}-vocab.txt", lowercase=lowercase)
    assert ours.vocab_size == {"bert-base-uncased": 30522, "bert-base-cased": 28996, "bert-base-chinese": 21128}[name]
    assert ours.token_id("[PAD]") == 0 and ours.special_ids == (0, 100, 101, 102, 103)


def test_a_learnt_tokenizer_is_saved_for_transformers_and_for_us(tmp_path):
    learnt = WordPieceTokenizer.train(SENTENCES, vocab_size=60)
    assert learnt.special_ids == (0, 1, 2, 3, 4)
    learnt.save(tmp_path / "new", max_length=77)
    names = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    reference = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert reference.model_max_length == 77 and reference.mask_token == "[MASK]"
    assert_same_ids(learnt, reference)
    assert_same_ids(WordPieceTokenizer.load(tmp_path / "new"), reference)
    (tmp_path / "new" / "tokenizer.json").unlink()
    assert_same_ids(WordPieceTokenizer.load(tmp_path / "new"), reference)


@pytest.mark.parametrize("options", [{"handle_chinese_chars": False}, {"strip_accents": False}])
def test_settings_of_the_normaliser_are_saved_for_transformers(tmp_path, options):
    learnt = WordPieceTokenizer.from_tokens([*SPECIAL_TOKENS, "自然", "自", "##然", "é", "e"], lowercase=True)
    learnt.backend.normalizer = normalizers.BertNormalizer(lowercase=True, **options)
    learnt.save(tmp_path, max_length=77)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("自然", "É"):
        assert learnt.piece_ids([text]) == [reference(text, add_special_tokens=False)["input_ids"]]


def test_case_is_kept_where_asked(tmp_path):
    learnt = WordPieceTokenizer.train(["Cat cat"] * 5, vocab_size=40, lowercase=False)
    assert {"Cat", "cat"} <= set(learnt.backend.get_vocab())
    learnt.save(tmp_path, max_length=9)
    (tmp_path / "tokenizer.json").unlink()
    assert not WordPieceTokenizer.load(tmp_path).lowercase


def test_case_is_inferred_from_the_words(tmp_path):
    file = tmp_path / "vocab.txt"
    for capitalised, lowercase in ((0, True), (1, True), (2, False)):  # of 100, beside the special tokens
        words = [f"w{i}" for i in range(95 - capitalised)] + [f"W{i}" for i in range(capitalised)]
        file.write_text("\n".join([*SPECIAL_TOKENS, *words]))
        for config in (None, {"model_max_length": 9}):
            (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
            if config is not None:
                (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
            assert WordPieceTokenizer.load(tmp_path).lowercase == lowercase


def test_pieces_tokens_and_decode():
    learnt = WordPieceTokenizer.train(SENTENCES, vocab_size=60)
    (ids,) = learnt.piece_ids(["the cat"])
    assert learnt.tokens(ids) == ["the", "cat"] and learnt.decode(ids) == "the cat"
    with pytest.raises(ValueError, match="'zebra' is not in the vocabulary"):
        learnt.token_id("zebra")


def test_broken_files(tmp_path, data_dir):
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt: no such file"):
        WordPieceTokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nword\n")
    with pytest.raises(ValueError, match=r"lacks \[CLS\], \[SEP\], \[MASK\]"):
        WordPieceTokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        WordPieceTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json"):
        WordPieceTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    shutil.copy(data_dir / "vocab" / "bert-base-cased-vocab.txt", tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": "no"}))
    with pytest.raises(ValueError, match="do_lower_case is 'no'"):
        WordPieceTokenizer.load(tmp_path)


def test_a_vocabulary_must_have_room():
    with pytest.raises(ValueError, match="vocab_size is 5"):
        WordPieceTokenizer.train(SENTENCES, vocab_size=5)


def test_an_id_far_beyond_any_vocabulary_is_refused(tmp_path):
    tokens = {token: i for i, token in enumerate(SPECIAL_TOKENS)} | {"far": 2**32 - 2}
    model = {"type": "WordPiece", "vocab": tokens, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    content = {"version": "1.0", "model": model | {"max_input_chars_per_word": 100}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokenizer.json: the largest token id is 4294967294"):
        WordPieceTokenizer.load(tmp_path)
