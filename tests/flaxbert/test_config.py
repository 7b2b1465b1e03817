"""`BertConfig`: presets, reading real and hostile files, and a config.json that `transformers` reads."""

import dataclasses
import json
import logging
import warnings

import numpy as np
import pytest
import transformers

import flaxbert
from flaxbert import BertConfig
from flaxbert.config import ADAPTIVE_FIELDS
from flaxbert.families import BERT, FILE_KEYS

MODELS = ("bert-base-NER", "bert-base-cased", "bert-base-uncased", "chinese-roberta-wwm-ext", "ms-marco-MiniLM-L-2-v2")
FILES = [
    *(f"tokenizers/{name}/config.json" for name in MODELS),
    "checkpoints/tiny_safetensors/config.json",
    "checkpoints/tiny_safetensors_sentence_transformer/config.json",
    "checkpoints/tiny_tf1/bert_config.json",
]


def warned(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "flaxbert" and r.levelno >= logging.WARNING]


# -- presets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "layers", "width", "heads", "inner"),
    [
        (BertConfig.tiny, 2, 128, 2, 512),
        (BertConfig.mini, 4, 256, 4, 1024),
        (BertConfig.small, 4, 512, 8, 2048),
        (BertConfig.medium, 8, 512, 8, 2048),
        (BertConfig.base, 12, 768, 12, 3072),
        (BertConfig.large, 24, 1024, 16, 4096),
        (BertConfig, 12, 768, 12, 3072),
    ],
)
def test_preset_sizes(preset, layers, width, heads, inner):
    config = preset(vocab_size=100)
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert sizes == (layers, width, heads, inner)
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (100, 512, 2)
    assert config.head_size == 64


def test_defaults_are_those_of_transformers():
    theirs = transformers.BertConfig()
    for name in {f.name for f in dataclasses.fields(BertConfig)} & vars(theirs).keys() - {"id2label"}:
        assert getattr(BertConfig(), name) == getattr(theirs, name), name
    assert BertConfig().num_labels == theirs.num_labels
    assert dict(enumerate(BertConfig().id2label)) == theirs.id2label


# -- real files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_real_files_are_read_like_transformers_reads_them(file, data_dir):
    config = BertConfig.from_pretrained(data_dir / file)
    theirs = transformers.BertConfig.from_json_file(data_dir / file)
    known = {f.name for f in dataclasses.fields(BertConfig)} - {"unused", "id2label", "pruned_heads", *ADAPTIVE_FIELDS}
    if "bert_config" in file:  # Google's
        assert (config.hidden_act, theirs.hidden_act) == ("gelu_new", "gelu")
        known -= {"hidden_act"}
    for name in known - {"position_embedding_type"}:  # which transformers 5 does not know any more
        assert getattr(config, name) == getattr(theirs, name), name
    assert dict(enumerate(config.id2label)) == theirs.id2label
    in_file = json.loads((data_dir / file).read_bytes())
    fields = {field.name for field in dataclasses.fields(BertConfig)}
    assert config.unused == {key: value for key, value in in_file.items() if key not in fields}


def test_labels_come_from_id2label(data_dir):
    config = BertConfig.from_pretrained(data_dir / "tokenizers/bert-base-NER")
    assert config.id2label == ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
    assert config.num_labels == 9
    assert BertConfig.from_pretrained(data_dir / "tokenizers/ms-marco-MiniLM-L-2-v2").num_labels == 1


# -- unknown keys ----------------------------------------------------------------------------------------------


def test_unknown_keys_are_kept_aside_and_warned_of(caplog):
    config = BertConfig.from_dict({"hidden_size": 24, "num_attention_heads": 2, "rotary": True, "__class__": "x"})
    assert config.unused == {"rotary": True, "__class__": "x"}
    expected = "config.json: keys without a meaning here, written back as they are: '__class__', 'rotary'"
    assert warned(caplog) == [expected]
    assert type(config) is BertConfig
    assert not hasattr(config, "rotary")


def test_methods_are_no_keys(caplog):
    config = BertConfig.from_dict({"replace": 1, "to_dict": 2, "head_size": 3, "unused": 4})
    assert config.head_size == 64 and callable(config.replace) and callable(config.to_dict)
    assert config.unused == {"replace": 1, "to_dict": 2, "head_size": 3, "unused": 4}
    assert len(warned(caplog)) == 1


def test_harmless_keys_are_kept_without_a_warning(caplog):
    values = dict.fromkeys(BERT.kept_config_keys | FILE_KEYS - {"model_type"}, "anything")
    assert BertConfig.from_dict(values).unused == values
    assert warned(caplog) == []


def test_unused_keys_are_neither_compared_nor_written_back():
    config = BertConfig.from_dict({"architectures": ["BertModel"], "transformers_version": "4.0"})
    assert config == BertConfig()
    assert not {"architectures", "transformers_version"} & config.to_dict().keys()


def test_keys_with_a_meaning_elsewhere_are_written_back():
    elsewhere = {
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0"},
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
        "function_to_apply": "none",
        "task_specific_params": {"a": [1, None]},
        "sep_token_id": None,
    }
    code = {"auto_map": {"AutoModel": "x.Y"}, "custom_pipelines": {"x": {}}, "trust_remote_code": True, "_commit": "1"}
    written = BertConfig.from_dict(elsewhere | code).to_dict()
    assert elsewhere.items() <= written.items() and not code.keys() & written.keys()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"0": "A", "2": "B"}, ("A", "LABEL_1")),
        ({"1": "a", "2": "b"}, ("LABEL_0", "a")),
        ({"-1": "a"}, ("LABEL_0",)),
        ({"0": 0, "1": 1.5, "2": True, "3": None}, ("0", "1.5", "True", "LABEL_3")),
    ],
)
def test_labels_with_gaps_or_without_names_are_read_as_transformers_does(labels, names, caplog, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    config = BertConfig.from_pretrained(tmp_path)
    theirs = transformers.BertConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.id2label) == (theirs.num_labels, names)
    assert all(str(theirs.id2label.get(i) or name) == name for i, name in enumerate(names) if name[:5] != "LABEL" and i)
    gaps = set(map(int, labels)) != set(range(len(labels)))
    assert [("id2label has the ids" in message) for message in warned(caplog)] == [True] * gaps


def test_padding_ids_below_zero_count_from_the_end_as_in_torch():
    config = BertConfig.from_dict({"pad_token_id": -1, "vocab_size": 30})
    assert (config.pad_token_id, config.padding_row, config.to_dict()["pad_token_id"]) == (-1, 29, -1)
    assert BertConfig().padding_row == 0 and BertConfig(pad_token_id=None).padding_row is None


# -- impossible values -----------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
IMPOSSIBLE = [
    *((name, value) for name in SIZES for value in (0, -1, 2**40, "768", 1.5, True, None)),
    *(("hidden_dropout_prob", value) for value in (-0.1, 1.1, 1.5, NAN, "0", None)),
    *(("attention_probs_dropout_prob", value) for value in (-0.1, 1.1, 1.5, NAN, "0", None)),
    *(("classifier_dropout", value) for value in (-0.1, 1.1, NAN, INF, "0.1", True)),
    *(("layer_norm_eps", value) for value in (0, -1e-12, NAN, INF, -INF, "1e-12", None, 10**400)),
    *(("initializer_range", value) for value in (-0.02, NAN, INF, "0.02", None)),
    *(("pad_token_id", value) for value in (-30523, 30522, 0.0, "0", True)),
    *(("hidden_act", value) for value in ("swiglu", "GELU", "", None, 3)),
    *(("problem_type", value) for value in ("multilabel", "", 1)),
    *((name, value) for name in ("is_decoder", "tie_word_embeddings") for value in (1, 0, "true", None)),
    *(("num_labels", value) for value in (0, -2, 2**28, "3", 2.5, True)),
    *(("position_embedding_type", value) for value in ("rotary", "", None, 1)),
    *(("chunk_size_feed_forward", value) for value in (-1, 1.5, "8", None)),
    *(("pruned_heads", value) for value in (3, {"x": [1]}, {"0": 1}, {"0": ["1"]}, {"0": [1.5]}, {0.5: [1]}, [1])),
    ("num_hidden_layers", 1025),
]  # fmt: skip


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"])
def test_dropout_of_all_elements_is_allowed_as_in_torch(name):
    assert getattr(BertConfig(**{name: 1.0}), name) == 1.0


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE, ids=lambda x: str(x)[:20])
def test_impossible_value_is_named(name, value, unchecked):
    with pytest.raises(ValueError) as error:
        BertConfig(**{name: value})
    assert name in str(error.value)
    assert repr(value) in str(error.value)


def test_width_must_be_divisible_by_heads():
    with pytest.raises(ValueError, match="hidden_size 768 is not divisible by num_attention_heads 5"):
        BertConfig(num_attention_heads=5)


def test_pruned_heads_are_kept_sorted_and_written_as_transformers_writes_them():
    config = BertConfig.from_dict({"pruned_heads": {"7": [4, 1, 1], "2": [11], "3": []}})
    assert config.pruned_heads == ((2, (11,)), (7, (1, 4)))
    assert config.kept_heads(7) == (0, 2, 3, 5, 6, 7, 8, 9, 10, 11)
    assert config.to_dict()["pruned_heads"] == {"2": [11], "7": [1, 4]}
    assert BertConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) != hash(BertConfig())
    assert BertConfig.from_dict({"pruned_heads": {}}) == BertConfig()
    assert "pruned_heads" not in BertConfig().to_dict()


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ({"12": [0]}, "a layer of pruned_heads is 12; it must be a whole number from 0 to 11"),
        ({"0": [12]}, "a head of layer 0 in pruned_heads is 12; it must be a whole number from 0 to 11"),
        ({"0": [-1]}, "a head of layer 0 in pruned_heads is -1"),
        ({"1": list(range(12))}, "pruned_heads has all heads of layer 1; a layer keeps at least one"),
    ],
)
def test_pruned_heads_must_exist_and_leave_one(pruned, message):
    with pytest.raises(ValueError, match=message):
        BertConfig.from_dict({"pruned_heads": pruned})


def test_cross_attention_needs_a_decoder():
    with pytest.raises(ValueError, match="cross-attention needs is_decoder=True"):
        BertConfig(add_cross_attention=True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "must name at least one label"),
        ({1: "a", 2: "b"}, r"id2label has the ids \[1, 2\]; they must be 0 to 1"),
        ({0: "a", "x": "b"}, r"id2label has the ids \[0, 'x'\]"),
        ({0: 3}, r"id2label is \(3,\)"),
        ("abc", "id2label is 'abc'"),
        (7, "id2label is 7"),
        (["a", None], r"id2label is \('a', None\)"),
    ],
)
def test_impossible_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        BertConfig(id2label=labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"x": "a"}, r"id2label has the ids \['x'\]; they must be whole numbers"),
        ({"0": "a", "00": "b"}, r"id2label has the ids \['0', '00'\]; two of them are the same"),
        ({"0": ["a"]}, r"id2label calls 0 \['a'\]; a label is a text or a number"),
        (["a"], r"id2label is \['a'\]; it must be an object"),
    ],
)
def test_impossible_labels_in_a_file(labels, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    with pytest.raises(ValueError, match=message):
        BertConfig.from_pretrained(tmp_path)


def test_two_different_numbers_of_labels():
    with pytest.raises(ValueError, match="num_labels is 3 but id2label names 2 labels"):
        BertConfig(num_labels=3, id2label=["a", "b"])


# -- impossible files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b"{'a': 1}", "not a JSON file"),
        (b'{"vocab_size": 3', "not a JSON file"),
        (b"\xff\xfe\x00", "not a JSON file"),
        (b"[" * 200_000, "not a JSON file"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "not a JSON file"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not a JSON file"),
        (b"[1, 2]", "holds a JSON list, expected an object"),
        (b"null", "holds a JSON NoneType, expected an object"),
        (b'{"model_type": "roberta"}', "model_type is 'roberta'; only 'bert' is read"),
        (b'{"model_type": null}', "model_type is None"),
        (b'{"hidden_size": "big"}', "hidden_size is 'big'"),
        (b'{"hidden_dropout_prob": NaN}', "hidden_dropout_prob is nan"),
        (b'{"layer_norm_eps": 1e999}', "layer_norm_eps is inf"),
        (b'{"num_labels": 268435456}', "num_labels is 268435456"),
    ],
    ids=lambda x: str(x)[:24],
)
def test_impossible_file_is_named_with_its_fault(content, message, tmp_path, unchecked):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    for path in (file, tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            BertConfig.from_pretrained(path)
        assert str(error.value).startswith(str(file))


def test_enormous_file_is_refused(tmp_path):
    file = tmp_path / "config.json"
    with file.open("wb") as stream:
        stream.truncate(2**33)  # sparse
    with pytest.raises(ValueError, match=f"{2**33} bytes; JSON files of at most"):
        BertConfig.from_pretrained(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json: no such file"):
        BertConfig.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BertConfig.from_pretrained(tmp_path / "nowhere")


# -- writing ---------------------------------------------------------------------------------------------------

UNUSUAL = BertConfig(
    vocab_size=99,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=31,
    hidden_act="gelu_new",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.25,
    max_position_embeddings=17,
    type_vocab_size=3,
    initializer_range=0.5,
    layer_norm_eps=1e-5,
    pad_token_id=None,
    classifier_dropout=0.125,
    is_decoder=True,
    add_cross_attention=True,
    chunk_size_feed_forward=3,
    tie_word_embeddings=False,
    problem_type="regression",
    id2label=("gut", "schlecht", "日本"),
)


@pytest.mark.parametrize("config", [BertConfig(), UNUSUAL, BertConfig(num_labels=1)], ids=["base", "unusual", "one"])
def test_transformers_reads_what_we_write_without_a_word(config, caplog):
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        theirs = transformers.BertConfig.from_dict(json.loads(json.dumps(config.to_dict(architecture="BertModel"))))
    assert caplog.records == [] and heard == []
    for field in dataclasses.fields(config):
        if field.name not in ("unused", "id2label", "pruned_heads", *ADAPTIVE_FIELDS):
            assert getattr(theirs, field.name) == getattr(config, field.name), field.name
    assert theirs.id2label == dict(enumerate(config.id2label))
    assert theirs.label2id == {name: i for i, name in enumerate(config.id2label)}
    assert theirs.architectures == ["BertModel"]


def test_every_field_of_the_unusual_config_is_unusual():
    usual = {f.name for f in dataclasses.fields(UNUSUAL) if getattr(UNUSUAL, f.name) == getattr(BertConfig(), f.name)}
    # transformers 5 does not know the first two any more, and has never known the last ones.
    assert usual == {"position_embedding_type", "pruned_heads", "unused", *ADAPTIVE_FIELDS}


@pytest.mark.parametrize("config", [BertConfig(), UNUSUAL], ids=["base", "unusual"])
def test_written_config_reads_back_equal_and_silently(config, caplog, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(architecture="BertModel")))
    assert BertConfig.from_pretrained(tmp_path) == config
    assert warned(caplog) == []


def test_transformers_own_file_reads_back(tmp_path, caplog):
    transformers.BertConfig(num_labels=5, classifier_dropout=0.3, pad_token_id=None).save_pretrained(tmp_path)
    config = BertConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.classifier_dropout, config.pad_token_id) == (5, 0.3, None)
    assert warned(caplog) == []


# -- a value ---------------------------------------------------------------------------------------------------


def test_configs_are_frozen_hashable_values():
    one, same, other = BertConfig(), BertConfig(unused={"a": [1]}), BertConfig(vocab_size=9)
    assert one == same and hash(one) == hash(same) and one != other
    assert len({one, same, other}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.vocab_size = 3


def test_replace_keeps_labels_and_their_number_together():
    config = BertConfig(id2label={1: "b", 0: "a", 2: "c"})
    assert (config.num_labels, config.id2label) == (3, ("a", "b", "c"))
    assert config.replace(hidden_act="relu").id2label == ("a", "b", "c")
    more = config.replace(num_labels=4)
    assert (more.num_labels, more.id2label) == (4, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"))
    fewer = config.replace(id2label=["x"])
    assert (fewer.num_labels, fewer.id2label) == (1, ("x",))
    assert config.replace(num_labels=2, id2label=["x", "y"]).id2label == ("x", "y")
    with pytest.raises(ValueError, match="num_labels is 3 but id2label names 2"):
        config.replace(num_labels=3, id2label=["x", "y"])
    assert config.replace(num_labels=np.int64(2)).num_labels == 2


def test_models_with_equal_configs_are_equal():
    assert flaxbert.BertModel(BertConfig()) == flaxbert.BertModel(BertConfig())
