"""RoBERTa against PyTorch's `transformers`: outputs, losses, gradients, config, weights both ways, tokenizer."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from tokenizers import ByteLevelBPETokenizer, processors

import flaxbert
from flaxbert import cli, families
from flaxbert.conversion.convert import convert
from flaxbert.conversion.inspect import inspect
from flaxbert.conversion.output import FORMATS
from flaxbert.conversion.verify import verify
from flaxbert.families import HeadKind, architecture_of, family_of, model_class
from flaxbert.families.family import TensorName
from flaxbert.families.roberta import ROBERTA, RobertaConfig
from flaxbert.pipelines import FillMaskPipeline, TextClassificationPipeline
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.names import leaf_at, name_mappings
from tests.flaxbert.parity import B, C, T, head_of
from tests.trees import initial

VOCAB_SIZE = 99
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # of the largest entry of a tensor's gradient
KINDS = (
    "Model",
    "ForMaskedLM",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
CLASSES = tuple("Roberta" + kind for kind in KINDS)
SIBLINGS = tuple(family + kind for family in ("XLMRoberta", "Camembert") for kind in KINDS)
DECODER = {"is_decoder": True}
CASES = [
    *((name, "padded", DECODER if name.endswith("CausalLM") else {}) for name in (*CLASSES, *SIBLINGS)),
    *((name, variant, {}) for name in CLASSES[:4] for variant in ("positions", "embeds")),
    ("RobertaModel", "padded", DECODER),
    ("RobertaForMaskedLM", "padded", {"tie_word_embeddings": False}),
    ("RobertaForMaskedLM", "padded", {"hidden_act": "relu"}),
    ("RobertaForSequenceClassification", "padded", {"num_labels": 1}),
    ("RobertaForSequenceClassification", "padded", {"problem_type": "multi_label_classification"}),
]
IDS = ["-".join([name, variant, *map(str, fixed)]) for name, variant, fixed in CASES]
# A constant added to every choice or position changes no probability; the last norm's bias is such a constant.
ZERO_GRADIENTS = {
    "ForMultipleChoice": ("classifier.bias",),
    "ForQuestionAnswering": ("qa_outputs.bias", "layer.1.output.LayerNorm.bias"),
}


def kind_of(name):
    return next(kind for kind in KINDS if name.endswith(kind))


def torch_model(name, seed=0, **fixed):
    """A small model of odd sizes in which no parameter is 0 or 1."""
    values = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 37,
        "hidden_size": 15,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 23,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "classifier_dropout": 0.3,
        "pad_token_id": [1, 5][seed % 2],
        "num_labels": 2 if name.endswith("QuestionAnswering") else 3,
        "attn_implementation": "eager",
    }
    config_class = getattr(transformers, name.removesuffix(kind_of(name)) + "Config")
    model = getattr(transformers, name)(config_class(**values | fixed)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + 1 if parameter.ndim == 1 else noise / parameter.shape[1] ** 0.5)
    return model


def random_inputs(variant, config, rng, *, choices=False):
    shape = (B, C, T) if choices else (B, T)
    ids = rng.integers(6, VOCAB_SIZE, shape)
    lengths = np.resize([T, 5, 1, 7], shape[:-1])[..., None]
    mask = (np.arange(T) < lengths).astype(np.int64)
    ids = np.where(mask, ids, config.pad_token_id)
    ids[0, ..., 4] = config.pad_token_id  # in the middle: its position is not counted
    if variant == "embeds":
        embeds = rng.standard_normal((*shape, config.hidden_size), np.float32)
        return {"inputs_embeds": embeds, "attention_mask": mask}
    if variant == "positions":
        return {"input_ids": ids, "position_ids": rng.integers(0, 37, shape), "token_type_ids": np.zeros_like(ids)}
    return {"input_ids": ids, "attention_mask": mask}


def run_torch(model, inputs, labels):
    """Return outputs, loss, and gradients by parameter name."""
    arrays = {key: torch.from_numpy(value) for key, value in (inputs | labels).items()}
    states = arrays.pop("states", None)
    if "inputs_embeds" in arrays:
        arrays["inputs_embeds"].requires_grad_()
    out = model(**arrays, output_hidden_states=True, output_attentions=True)
    loss = out.loss if states is None else (out.last_hidden_state * states).sum() + out.pooler_output.mean()
    loss.backward()
    gradients = {
        key: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for key, p in model.named_parameters()
    }
    return out, float(loss.detach()), gradients


def in_file_layout(model, params):
    """Return a tree in the shape of the parameters as arrays by Hugging Face's names."""
    params, arrays = jax.device_get(params), {}
    for mapping in name_mappings(family_of(model), params):
        leaf = leaf_at(params, mapping.path)
        name = mapping.name.removeprefix("roberta.") if architecture_of(model).is_base_model else mapping.name
        arrays[name] = mapping.to_file_layout(leaf if mapping.layer is None else leaf[mapping.layer])
    return arrays


def marks(name, variant="padded"):
    """The siblings' classes run RoBERTa's code: one of each family is enough in every run, and one of other inputs."""
    often = name in (*CLASSES, "XLMRobertaForSequenceClassification", "CamembertForMaskedLM")
    return () if often and (variant == "padded" or name == "RobertaModel") else pytest.mark.slow


@pytest.mark.parametrize(
    ("seed", "name", "variant", "fixed"),
    [pytest.param(i, *case, marks=marks(*case[:2])) for i, case in enumerate(CASES)],
    ids=IDS,
)
def test_outputs_loss_and_gradients_equal_pytorch(seed, name, variant, fixed, tmp_path):
    reference = torch_model(name, seed, **fixed)
    reference.save_pretrained(tmp_path)
    model, params = flaxbert.from_pretrained(tmp_path)
    assert architecture_of(model).name == name and model.config.model_type == reference.config.model_type
    rng, head = np.random.default_rng(seed), head_of(model)
    inputs = random_inputs(variant, reference.config, rng, choices=model.takes_choices)
    labels = head.labels(rng, model.config)

    @jax.jit
    def run(params):
        out = model.apply({"params": params}, **inputs, output_hidden_states=True, output_attentions=True)
        loss = lambda params: head.loss(model.apply({"params": params}, **inputs), labels, model.config)  # noqa: E731
        return out, *jax.value_and_grad(loss)(params)

    ours, loss, gradients = run(params)
    theirs, their_loss, their_gradients = run_torch(reference, inputs, labels)
    of_decoders = {"cross_attentions", "cache", "lengths"}
    for field, value in vars(ours).items():
        if field in of_decoders:
            assert value is None
            continue
        pairs = (
            zip(value, getattr(theirs, field), strict=True) if isinstance(value, tuple) else [(value, theirs[field])]
        )
        for one, other in pairs:
            assert one.shape == other.shape and one.dtype == jnp.float32, field
            np.testing.assert_allclose(one, other.detach().numpy(), rtol=0, atol=OUTPUT_TOLERANCE, err_msg=field)
    assert abs(their_loss) > 1e-2 and abs(loss - their_loss) <= OUTPUT_TOLERANCE
    if not reference.config.tie_word_embeddings:
        del their_gradients["lm_head.bias"]  # a parameter that the untied decoder never reads
    word, decoder = "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"
    if word not in their_gradients and decoder in their_gradients:  # the first of the tied tensor's two names
        their_gradients[word] = their_gradients.pop(decoder)
    gradients = in_file_layout(model, gradients)
    assert gradients.keys() == their_gradients.keys()
    for key, expected in their_gradients.items():
        # A softmax does not see a constant: this exact gradient is 0, and both sides hold rounding.
        zero = ("key.bias", *ZERO_GRADIENTS.get(kind_of(name), ()))
        allowed = 1e-6 if key.endswith(zero) else GRADIENT_TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose(gradients[key], expected, rtol=0, atol=allowed, err_msg=key)


@pytest.mark.parametrize("name", CLASSES)
def test_padding_row_of_a_new_model_is_zero_and_has_no_gradient(name):
    config = RobertaConfig.tiny(vocab_size=VOCAB_SIZE, max_position_embeddings=20, type_vocab_size=1)
    model = getattr(flaxbert, name)(config)
    params = model.init(jax.random.key(0), model.example_ids)["params"]
    table = params.get("roberta", params)["embeddings"]["position"]["embedding"]
    assert not table[1].any() and table[0].any() and table[2].any()


def test_a_sequence_beyond_the_positions_is_refused():
    model = flaxbert.RobertaModel(RobertaConfig.tiny(vocab_size=VOCAB_SIZE, max_position_embeddings=20))
    assert model.config.max_sequence_length == 18
    params = initial(model)
    model.apply({"params": params}, np.full((1, 18), 7))
    with pytest.raises(ValueError, match="19 tokens; the model takes 18"):
        model.apply({"params": params}, np.full((1, 19), 7))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model.apply({"params": params})


def test_packed_rows_score_like_rows_apart():
    model = flaxbert.RobertaForSequenceClassification(
        RobertaConfig.tiny(vocab_size=VOCAB_SIZE, max_position_embeddings=20, num_labels=3)
    )
    params = initial(model)
    ids = np.arange(10, 18)[None]
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 2]])
    packed = model.apply(
        {"params": params},
        ids,
        attention_mask=flaxbert.functional.packed_mask(segments),
        position_ids=np.array([[2, 3, 4, 2, 3, 4, 5, 6]]),
        first_positions=np.array([[0, 3]]),
    )
    apart = [model.apply({"params": params}, part).logits[0] for part in (ids[:, :3], ids[:, 3:])]
    np.testing.assert_allclose(packed.logits[0], np.stack(apart), rtol=0, atol=1e-5)


# -- config ----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_transformers():
    ours, theirs = RobertaConfig(), transformers.RobertaConfig()
    for name in vars(theirs).keys() & vars(ours).keys() - {"id2label"}:
        assert getattr(ours, name) == getattr(theirs, name), name


def test_config_both_ways(tmp_path):
    theirs = transformers.RobertaConfig(vocab_size=77, max_position_embeddings=30, type_vocab_size=1, num_labels=4)
    theirs.save_pretrained(tmp_path / "theirs")
    config = RobertaConfig.from_pretrained(tmp_path / "theirs")
    assert (config.max_position_embeddings, config.max_sequence_length, config.num_labels) == (30, 28, 4)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config.to_dict()))
    again = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert type(again) is transformers.RobertaConfig
    for key in ("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "id2label"):
        assert getattr(again, key) == getattr(theirs, key), key


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pad_token_id": None}, "pad_token_id is None"),
        ({"max_position_embeddings": 2}, "max_position_embeddings is 2; it must exceed pad_token_id"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(ValueError, match=message):
        RobertaConfig(**values)


def test_a_class_of_another_family_is_refused(tmp_path):
    torch_model("RobertaForMaskedLM").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type is 'roberta'; only 'bert' is read"):
        flaxbert.BertForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type is 'roberta'; only 'bert' is read"):
        flaxbert.BertConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("RobertaModel", flaxbert.BertConfig, "config is a BertConfig; RobertaModel takes a RobertaConfig"),
        ("BertModel", RobertaConfig, "config is a RobertaConfig; BertModel takes a BertConfig"),
        ("BertForMaskedLM", RobertaConfig, "config is a RobertaConfig; BertForMaskedLM takes a BertConfig"),
    ],
)
def test_a_config_of_another_family_is_refused(name, config, message):
    model = getattr(flaxbert, name)(config.tiny())
    with pytest.raises(TypeError, match=message):
        model.parameter_shapes()
    with pytest.raises(TypeError, match=message):
        model.init(jax.random.key(0), model.example_ids)


# -- weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_with_one_name_for_the_decoder_bias(tied, tmp_path, monkeypatch):
    decoder = dataclasses.replace(ROBERTA.decoder, untied_bias="lm_head.bias")
    rows = (*(row for row in ROBERTA.heads if row.name != "lm_head.decoder.bias"),)
    rows += (TensorName("lm_head.bias", ("predictions", "decoder", "bias"), per_token=True),)
    family = dataclasses.replace(ROBERTA, decoder=decoder, heads=rows)
    name = flaxbert.RobertaForMaskedLM
    monkeypatch.setitem(families._BY_CLASS, name, (family, architecture_of(name)))
    model = flaxbert.RobertaForMaskedLM(RobertaConfig.tiny(vocab_size=VOCAB_SIZE, tie_word_embeddings=tied))
    params = initial(model)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), params)
    flaxbert.save_pretrained(tmp_path / "a", model, params)
    convert(tmp_path / "a", tmp_path / "b", format="flax")
    for folder in ("a", "b"):
        jax.tree.map(np.testing.assert_array_equal, flaxbert.from_pretrained(tmp_path / folder)[1], params)


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        *(pytest.param(name, True, marks=marks(name)) for name in (*CLASSES, *SIBLINGS)),
        ("RobertaForMaskedLM", False),
    ],
)
def test_a_folder_of_transformers_passes_through_bit_for_bit(name, tied, tmp_path):
    torch_model(name, tie_word_embeddings=tied).save_pretrained(tmp_path / "theirs")
    flaxbert.save_pretrained(tmp_path / "ours", *flaxbert.from_pretrained(tmp_path / "theirs"))
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    if name == "RobertaForMaskedLM" and not tied:  # never read: the file of this library repeats the one that is
        before["lm_head.bias"] = before["lm_head.decoder.bias"]
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.tobytes() == after[key].tobytes() and tensor.dtype == after[key].dtype, key
    _, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {kind: list(found) for kind, found in report.items() if found} == {}


@pytest.mark.parametrize("format", FORMATS)
def test_conversion_to_every_format_and_back(format, tmp_path):
    torch_model("RobertaForSequenceClassification").save_pretrained(tmp_path / "a")
    done = convert(tmp_path / "a", tmp_path / "b", format=format, verify=True)
    assert (done.head, done.newly_initialised, done.left_out) == ("RobertaForSequenceClassification", [], [])
    convert(tmp_path / "b", tmp_path / "c", verify=True)
    assert verify(tmp_path / "a", tmp_path / "c").same()
    assert inspect(tmp_path / "c").loads


def test_the_class_is_found_by_names_and_the_number_of_labels_by_shape(tmp_path):
    folder = tmp_path / "a"
    torch_model("RobertaForSequenceClassification").save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "id2label", "label2id"):
        del values[key]
    (folder / "config.json").write_text(json.dumps(values))
    done = convert(folder, tmp_path / "b")
    assert done.head == "RobertaForSequenceClassification"
    assert flaxbert.from_pretrained(tmp_path / "b")[0].config.num_labels == 3


def test_a_head_changes_on_request(tmp_path):
    torch_model("RobertaForMaskedLM").save_pretrained(tmp_path / "a")
    done = convert(tmp_path / "a", tmp_path / "b", head="RobertaForSequenceClassification")
    assert done.newly_initialised == [
        f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("bias", "weight")
    ]
    with pytest.raises(ValueError, match="head is 'BertForMaskedLM'; allowed for 'roberta': RobertaModel"):
        convert(tmp_path / "a", tmp_path / "c", head="BertForMaskedLM")


def test_heads_of_the_family():
    assert ROBERTA.classes_for([HeadKind.MASKED_LM]) == ("RobertaForMaskedLM",)
    assert set(CLASSES) <= flaxbert.ARCHITECTURES.keys()
    assert model_class(RobertaConfig(), HeadKind.MASKED_LM) is flaxbert.RobertaForMaskedLM
    assert model_class(flaxbert.BertConfig(), HeadKind.QUESTION_ANSWERING) is flaxbert.BertForQuestionAnswering
    with pytest.raises(ValueError, match="'roberta' has no model for next-sentence prediction here"):
        model_class(RobertaConfig(), HeadKind.NEXT_SENTENCE)


# -- tokenizer -------------------------------------------------------------------------------------------------


def write_classifier(path):
    """Write a classifier with a byte-level BPE tokenizer as transformers writes it."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = ByteLevelBPETokenizer()
    text = ["The cat sat on the mat.", "A dog sat on a log, and the cat was glad."] * 20
    backend.train_from_iterator(text, vocab_size=300, special_tokens=special, show_progress=False)
    backend._tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roles = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer, **{f"{role}_token": token for role, token in roles.items()}
    )
    torch_model("RobertaForSequenceClassification", vocab_size=300).save_pretrained(path)
    tokenizer.save_pretrained(path)
    backend.save_model(str(path))  # vocab.json and merges.txt, which published folders hold too
    return path


@pytest.fixture
def folder(tmp_path):
    return write_classifier(tmp_path / "model")


def test_the_tokenizer_is_read_as_it_is(folder):
    ours, theirs = WordPieceTokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    texts, pairs = ["The cat", "a log"], [None, "sat on the mat"]
    for encoding, text, pair in zip(ours.encode(texts, pairs, max_length=30), texts, pairs, strict=True):
        assert encoding.ids == theirs(text, pair)["input_ids"]
    assert ours.special_ids == (1, 3, 0, 2, 4)


def test_a_converted_folder_has_the_same_tokenizer(folder, tmp_path, caplog):
    convert(folder, tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (tmp_path / "b" / "tokenizer_config.json").read_bytes() == (folder / "tokenizer_config.json").read_bytes()
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "b" / "vocab.txt").exists() and caplog.text == ""


def test_save_writes_the_files_that_were_loaded_or_refuses(folder, tmp_path):
    ours = WordPieceTokenizer.load(folder)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "vocab.txt").write_text("of another tokenizer")
    ours.save(tmp_path / "b", max_length=35)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "b" / "vocab.txt").exists()
    built = WordPieceTokenizer(ours.backend, special_tokens=ours.special_tokens)
    with pytest.raises(ValueError, match="BPE"):
        built.save(tmp_path / "c", max_length=35)
    assert not (tmp_path / "c").exists()


def test_the_command_fills_the_mask_of_the_family(folder, capsys):
    torch_model("RobertaForMaskedLM", vocab_size=300).save_pretrained(folder)
    command = ["predict", "fill-mask", "--model", str(folder), "--top-k", "1"]
    assert cli.main([*command, "The <mask> sat."]) == 0
    token = FillMaskPipeline.from_pretrained(folder, top_k=1)(["The <mask> sat."])[0].masks[0][0].token
    assert token in capsys.readouterr().out
    assert cli.main([*command, "The [MASK] sat."]) == 2
    assert "holds no <mask>" in capsys.readouterr().err


def test_classification_equals_that_of_transformers(folder):
    texts = ["The cat sat on a log.", "A dog"]
    found = TextClassificationPipeline.from_pretrained(folder)(texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.RobertaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    scores = torch.softmax(logits, dim=-1).numpy()
    for one, expected in zip(found, scores, strict=True):
        ours = {label.name: label.score for label in one.labels}
        theirs = {name: expected[i] for i, name in model.config.id2label.items()}
        assert ours == pytest.approx(theirs, abs=1e-5)
