"""The tokenizer of a folder is the one that transformers' `AutoTokenizer` builds from it, or the folder is refused."""

import collections
import concurrent.futures
import contextlib
import json
import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from flaxbert.encoded_text import longest_first
from flaxbert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from flaxbert.tokenizer_files import copy_tokenizer_files
from flaxbert.tokenizer_folder import BERT_CLASSES
from flaxbert.tokenizer_saving import file_contents
from tests.flaxbert.tokenizer_folders import mutate, texts, write_folder

WORDS = [*SPECIAL_TOKENS, "cafe", "café", "Café", "東", "京", "東京", "<", "ent", ">", "a", "b"]
TEXTS = ["Café", "CAFÉ 東京 [MASK]", "<ent> a", "[SEP] b\u200b", ""]


def write(folder, *, vocabulary=WORDS, model_type="bert", **files):
    folder.mkdir(exist_ok=True)
    if vocabulary is not None:
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def assert_same(ours, theirs, *, max_length=64, given=TEXTS):
    for pairs in (None, given[::-1]):
        found = ours.encode(given, pairs or [None] * len(given), max_length=max_length)
        arguments = (given,) if pairs is None else (given, pairs)
        expected = theirs(*arguments, truncation=True, max_length=max_length)
        assert [encoding.ids for encoding in found] == expected["input_ids"]
        if "token_type_ids" in expected:
            assert [encoding.type_ids for encoding in found] == expected["token_type_ids"]


def assert_read_alike(folder, *, max_length=64):
    """Compare with AutoTokenizer: the folder, its tokenizer saved, and the files copied beside another config.json."""
    ours = WordPieceTokenizer.load(folder)
    assert_same(ours, AutoTokenizer.from_pretrained(folder), max_length=max_length)
    saved = folder.with_name(f"{folder.name}-saved")
    ours.save(saved, max_length=512)
    assert_same(ours, AutoTokenizer.from_pretrained(saved), max_length=max_length)
    assert_same(WordPieceTokenizer.load(saved), AutoTokenizer.from_pretrained(saved), max_length=max_length)
    for model_type in ("bert", None):
        copied = write(folder.with_name(f"{folder.name}-{model_type}"), vocabulary=None, model_type=model_type)
        copy_tokenizer_files(folder, copied, max_length=512)
        assert_same(ours, AutoTokenizer.from_pretrained(copied), max_length=max_length)
    return ours


@pytest.mark.parametrize(
    "config",
    [
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": False, "tokenize_chinese_chars": False},
        {"do_lower_case": True, "truncation_side": "left"},
        {"do_lower_case": True, "split_special_tokens": True},
        {"do_lower_case": True, "tokenizer_class": "DistilBertTokenizerFast"},
        {"do_lower_case": True, "never_split": ["Café"], "do_basic_tokenize": False},  # transformers 5 ignores both
    ],
)
def test_settings_of_the_config_count(tmp_path, config):
    assert_read_alike(write(tmp_path / "a", tokenizer_config=config), max_length=4)


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"<ent>": len(WORDS)}},
        {"tokenizer_config": {"added_tokens_decoder": {str(len(WORDS)): {"content": "<ent>"}}, "do_lower_case": True}},
        {"special_tokens_map": {"additional_special_tokens": ["<ent>"]}},
        {"tokenizer_config": {"additional_special_tokens": ["<ent>"], "do_lower_case": True}},
        {"tokenizer_config": {"extra_special_tokens": {"entity_token": "<ent>"}, "do_lower_case": True}},
    ],
)
def test_a_token_declared_in_any_place_is_one_token(tmp_path, files):
    files = {"tokenizer_config": {"do_lower_case": True}} | files
    ours = assert_read_alike(write(tmp_path / "a", **files))
    assert ours.piece_ids(["a<ent>"]) == [[WORDS.index("a"), len(WORDS)]] and ours.vocab_size == len(WORDS) + 1


def test_special_tokens_of_other_names(tmp_path):
    words = ["<p>", "<u>", "<c>", "<s>", "<m>", *WORDS[5:]]
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), words, strict=False))
    names["mask_token"] = {"content": "<m>", "lstrip": True, "normalized": False}
    folder = write(tmp_path / "a", vocabulary=words, special_tokens_map=names, tokenizer_config={"do_lower_case": True})
    ours = assert_read_alike(folder)
    assert ours.special_ids == (0, 1, 2, 3, 4) and ours.special_tokens.mask == "<m>"


def test_a_vocabulary_file_of_practice(tmp_path):
    folder = write(tmp_path / "a", tokenizer_config={"do_lower_case": True})
    lines = [*WORDS, "", "a", "tail \u3000", "\u2028", "c\rd", "", "end"]
    (folder / "vocab.txt").write_bytes("\r\n".join(lines).encode())
    ours = assert_read_alike(folder)
    assert ours.piece_ids(["a end tail"]) == [[lines.index("a", -6), len(lines) - 1, len(WORDS) + 2]]
    # Its lines no longer give every token its id.
    assert sorted(file_contents(ours, max_length=9)) == ["tokenizer.json", "tokenizer_config.json"]


def stored_word_pieces(**changes):
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return json.loads(backend.to_str()) | changes


def bert_normaliser(**changes):
    settings = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    return {"normalizer": settings | {"lowercase": True} | changes}


def without_unknown_token():
    stored = stored_word_pieces(**bert_normaliser())
    words = {word: i for i, word in enumerate(word for word in WORDS if word != "[UNK]")}
    unknown = {"id": len(words), "content": "[UNK]", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return stored | {"model": stored["model"] | {"vocab": words}, "added_tokens": [unknown | flags]}


def unigram():
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁Café", -1.0), ("a", -2.0)]
    backend = Tokenizer(models.Unigram([*pieces, ("東京", -1.5), ("<mask>", 0.0)], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return json.loads(backend.to_str())


@pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "PreTrainedTokenizerFast"])
def test_a_bert_with_the_tokenizer_of_xlm_r(tmp_path, name):
    roles = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
    config = {"tokenizer_class": name, "model_max_length": 40} | {
        f"{role}_token": token for role, token in roles.items()
    }
    stored = unigram() | {"normalizer": {"type": "Lowercase"}}  # which XLM-R's class replaces by its own
    ours = assert_read_alike(write(tmp_path / "a", vocabulary=None, tokenizer=stored, tokenizer_config=config))
    assert (ours.piece_ids(["Café"]) == [[5]]) == (name != "PreTrainedTokenizerFast")
    assert ours.special_ids == (1, 3, 0, 2, 8) and ours.max_length == 40 and not ours.has_word_pieces
    template = ours.pair_template
    assert (template.before.ids, template.between.ids, template.after.ids) == ([0], [2, 2], [2])
    assert (template.first_type, template.second_type, template.size) == (0, 0, 4)


def test_the_stored_file_counts_only_for_the_class_that_takes_it_as_it_is(tmp_path):
    template = {"post_processor": None, "normalizer": {"type": "Lowercase"}}
    folder = write(tmp_path / "a", tokenizer=stored_word_pieces(**template), tokenizer_config={"do_lower_case": False})
    assert_read_alike(folder)  # BertTokenizer takes only the vocabulary of the file
    with pytest.raises(ValueError, match="post-processor writes no tokens around a text"):
        write(folder, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
        WordPieceTokenizer.load(folder)


def test_a_pair_has_one_token_type_where_the_config_names_no_types(tmp_path):
    config = {"model_input_names": ["input_ids", "attention_mask"], "do_lower_case": True}
    ours = assert_read_alike(write(tmp_path / "a", tokenizer_config=config))
    assert set(ours.encode(["a"], ["b"], max_length=9)[0].type_ids) == {0}
    ours.save(tmp_path / "b", max_length=9)
    assert not WordPieceTokenizer.load(tmp_path / "b").uses_token_types


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, 'vocab.txt: is cased, .* the key "do_lower_case" with the value false'),
        ({"tokenizer": stored_word_pieces(**bert_normaliser(lowercase=False))}, "made with do_lower_case false, but"),
        ({"tokenizer": stored_word_pieces(**bert_normaliser(strip_accents=False))}, "made with strip_accents false"),
        ({"tokenizer": unigram()}, "holds a Unigram model, .* set tokenizer_class .* to PreTrainedTokenizerFast"),
        (
            {"tokenizer_config": {"tokenizer_class": "AlbertTokenizer"}},
            "tokenizer_class is 'AlbertTokenizer'; supported",
        ),
        (
            {"tokenizer_config": {"tokenizer_class": "XLMRobertaTokenizer"}},
            "read from tokenizer.json, which is missing",
        ),
        ({"tokenizer_config": {"do_lower_case": 1}}, "do_lower_case is 1; it must be true or false"),
        ({"tokenizer_config": {"strip_accents": "no"}}, "strip_accents is 'no'; it must be true or false"),
        ({"tokenizer_config": {"padding_side": "left"}}, "pads on the left"),
        ({"tokenizer_config": {"truncation_side": "middle"}}, "truncation_side is 'middle'; it must be left or right"),
        ({"tokenizer_config": {"model_max_length": "long"}}, "model_max_length is 'long'"),
        ({"tokenizer_config": {"auto_map": {"AutoTokenizer": ["a.B", None]}}}, "auto_map is not supported"),
        ({"tokenizer_config": {"cls_token": None, "do_lower_case": True}}, "cls_token is null"),
        ({"tokenizer_config": {"mask_token": 4}}, "mask_token is 4; expected a token"),
        ({"tokenizer_config": {"mask_token": "<m>", "do_lower_case": True}}, "the vocabulary lacks <m>; add"),
        (
            {"tokenizer": without_unknown_token(), "tokenizer_config": {"do_lower_case": True}},
            r"unk_token '\[UNK\]' is not in the model's own vocabulary",
        ),
        (
            {
                "tokenizer": unigram() | {"model": unigram()["model"] | {"unk_id": None}},
                "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
            },
            "the Unigram model has no unk_id",
        ),
        ({"tokenizer_config": []}, "tokenizer_config.json: holds a JSON list, expected an object"),
        ({"added_tokens": {"<ent>": 40}}, "declares the token '<ent>' with the id 40, .* its id is 16"),
        ({"added_tokens": {"<ent>": "16"}}, "'<ent>' has the id '16'; expected a whole number"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(tmp_path, files, message):
    if "added_tokens" in files or "must be left or right" in message or "max_length" in message:
        files = files | {"tokenizer_config": {"do_lower_case": True} | files.get("tokenizer_config", {})}
    with pytest.raises(ValueError, match=message):
        WordPieceTokenizer.load(write(tmp_path / "a", **files))


def test_a_byte_order_mark_is_refused(tmp_path):
    folder = write(tmp_path / "a", vocabulary=["\ufeff[PAD]", *WORDS[1:]], tokenizer_config={"do_lower_case": True})
    with pytest.raises(ValueError, match="begins with a byte-order mark"):
        WordPieceTokenizer.load(folder)


def test_an_added_token_never_takes_the_id_of_another(tmp_path):
    folder = write(tmp_path / "a", vocabulary=[*WORDS, "", "", "end"], special_tokens_map={"ent_token": "<e>"})
    write(folder, vocabulary=None, tokenizer_config={"do_lower_case": True})
    # 19 lines are 18 tokens, so the next id is that of the last line.
    with pytest.raises(ValueError, match="have the same id 18"):
        WordPieceTokenizer.load(folder)


def test_a_google_folder_keeps_its_case_when_it_is_copied(tmp_path):
    folder = write(tmp_path / "a", model_type=None)  # transformers has no default for a folder without config.json
    ours = WordPieceTokenizer.load(folder)
    assert not ours.lowercase
    copied = write(tmp_path / "b", vocabulary=None)
    assert copy_tokenizer_files(folder, copied) == ["vocab.txt", "tokenizer_config.json"]
    assert_same(ours, AutoTokenizer.from_pretrained(copied))


def test_classes_that_build_bert_s_tokenizer():
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    bert = tokenizer_class_from_name("BertTokenizer")
    assert bert is not None
    for name in BERT_CLASSES:
        found = tokenizer_class_from_name(name)
        assert found is not None and issubclass(found, bert)


def test_threads_do_not_change_each_other_s_lengths(tmp_path):
    tokenizer = WordPieceTokenizer.load(write(tmp_path / "a", tokenizer_config={"do_lower_case": True}))
    text = "a b " * 300

    def lengths(length):
        found = {len(e.ids) for _ in range(20) for e in tokenizer.encode([text] * 4, [text] * 4, max_length=length)}
        return found, {len(ids) for ids in tokenizer.piece_ids([text] * 4)}

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for length, found in zip(range(10, 26), pool.map(lengths, range(10, 26)), strict=True):
            assert found == ({length}, {600})


def test_pairs_are_cut_as_the_library_cuts_them():
    backend = WordPieceTokenizer.from_tokens(WORDS, lowercase=True).backend
    for room in range(9):
        for first in range(9):
            for second in range(9):
                backend.enable_truncation(room + 3)
                sequences = backend.encode("a " * first, "b " * second).sequence_ids
                assert longest_first(first, second, room) == (sequences.count(0), sequences.count(1))


def compare_random_folders(root, seeds):
    """Count the folders that are read alike and those that are refused; fail at the first that is read otherwise."""
    outcomes = collections.Counter()
    for seed in seeds:
        draw, folder = random.Random(seed), root / str(seed)
        write_folder(folder, draw)
        try:
            ours = WordPieceTokenizer.load(folder)
        except (ValueError, FileNotFoundError):
            outcomes["refused"] += 1
            continue
        try:
            theirs = AutoTokenizer.from_pretrained(folder)
        except ValueError:  # a vocab.txt without config.json
            outcomes["read by us alone"] += 1
            continue
        given, length = texts(draw, 10), draw.choice([5, 8, 9, 64])
        assert_same(ours, theirs, max_length=length, given=given)
        saved = root / f"{seed}-saved"
        ours.save(saved, max_length=512)
        assert_same(ours, AutoTokenizer.from_pretrained(saved), max_length=length, given=given)
        outcomes["alike"] += 1
    return outcomes


# Beside the first sixty, seeds that find readers without special_tokens_map.json, tokenize_chinese_chars, strip_accents
SHORT = [*range(60), 67, 70, 85, 190, 107, 156]


@pytest.mark.parametrize("seeds", [SHORT, pytest.param(range(1000, 3000), marks=pytest.mark.slow)], ids=["66", "2000"])
def test_random_folders_are_read_alike_or_refused(tmp_path, seeds):
    outcomes = compare_random_folders(tmp_path, seeds)
    assert outcomes["alike"] >= len(seeds) / 2 and outcomes["read by us alone"] <= len(seeds) / 20


@pytest.mark.parametrize(
    "seeds", [range(900, 1000), pytest.param(range(1000, 4000), marks=pytest.mark.slow)], ids=["100", "3000"]
)
def test_files_with_other_kinds_of_values_are_read_or_refused(tmp_path, seeds):
    for seed in seeds:
        draw, folder = random.Random(seed), tmp_path / str(seed)
        write_folder(folder, draw)
        file = draw.choice(sorted(folder.glob("*.json")) or [None])
        if file is None:
            continue
        file.write_text(json.dumps(mutate(json.loads(file.read_text()), draw)))
        with contextlib.suppress(ValueError, FileNotFoundError):
            tokenizer = WordPieceTokenizer.load(folder)
            tokenizer.encode(["a [MASK] b"], ["Café"], max_length=9)
            tokenizer.save(tmp_path / "saved", max_length=9)


@pytest.mark.parametrize("model_type", ["distilbert", "electra", "mobilebert"])
def test_siblings_of_bert_without_a_class_name(tmp_path, model_type):
    assert_read_alike(write(tmp_path / "a", vocabulary=WORDS[:7], model_type=model_type))
