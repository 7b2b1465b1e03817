"""`EncoderDecoderModel` against PyTorch: outputs, loss and gradients, folders both ways, and joined checkpoints."""

import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import flaxbert
from flaxbert import losses, sharding
from flaxbert.generation import prepare_for_generation
from tests.flaxbert.parity import randomise
from tests.trees import initial

B, X, T = 3, 7, 5
SIZES = {"vocab_size": 40, "num_hidden_layers": 2, "intermediate_size": 30, "max_position_embeddings": 12}
RANDOM = np.random.default_rng(3)
IDS = RANDOM.integers(1, 40, (B, X))
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
LABELS = np.where(RANDOM.random((B, T)) < 0.2, -100, RANDOM.integers(3, 40, (B, T)))


def reference_model(encoder_width=16, decoder_width=16, **changes):
    encoder = transformers.BertConfig(**SIZES, hidden_size=encoder_width, num_attention_heads=2)
    decoder = transformers.BertConfig(**SIZES, hidden_size=decoder_width, num_attention_heads=4, **changes)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = transformers.EncoderDecoderModel(config=config).eval()
    model.set_attn_implementation("eager")
    randomise(model, 4)
    return model


@pytest.mark.parametrize("widths", [(16, 16), (24, 16)], ids=["same width", "projected"])
@pytest.mark.filterwarnings("ignore:Version v4.12.0")
def test_outputs_loss_and_gradients_equal_pytorch(widths, tmp_path):
    reference = reference_model(*widths)
    reference.save_pretrained(tmp_path / "hf")
    model, params = flaxbert.from_pretrained(tmp_path / "hf")
    assert isinstance(model, flaxbert.EncoderDecoderModel)
    wanted = reference(torch.tensor(IDS), attention_mask=torch.tensor(MASK), labels=torch.tensor(LABELS))
    wanted.loss.backward()

    def loss_of(params):
        shifted = model.shift_right(LABELS)
        call = {"attention_mask": MASK, "decoder_attention_mask": shifted != 0, "decoder_input_ids": shifted}
        out = model.apply({"params": params}, IDS, **call)
        return losses.masked_lm(out.logits, LABELS).mean, out

    (loss, out), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    np.testing.assert_allclose(out.logits, wanted.logits.detach().numpy(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(loss, wanted.loss.item(), rtol=1e-5)
    flaxbert.save_pretrained(tmp_path / "gradients", model, gradients)  # the names and layouts of PyTorch
    import safetensors.numpy

    ours = safetensors.numpy.load_file(tmp_path / "gradients" / "model.safetensors")
    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters() if p.grad is not None}
    assert len(theirs) > 60
    for name, value in theirs.items():
        largest = 0.1 if name.endswith("key.bias") else np.abs(value).max()  # the exact gradient of these is 0
        np.testing.assert_allclose(ours[name], value, atol=1e-4 * largest, rtol=0, err_msg=name)


@pytest.mark.parametrize("untied", [False, True])
def test_folders_go_both_ways(untied, tmp_path):
    reference = reference_model(24, 16, tie_word_embeddings=not untied)
    reference.save_pretrained(tmp_path / "hf")
    model, params = flaxbert.EncoderDecoderModel.from_pretrained(tmp_path / "hf")
    flaxbert.save_pretrained(tmp_path / "ours", model, params, checksums=True)
    again, loading = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    for (name, ours), theirs in zip(again.state_dict().items(), reference.state_dict().values(), strict=True):
        # An untied decoder has a bias of its own; the other one is not used.
        assert torch.equal(ours, theirs) or (untied and name == "decoder.cls.predictions.bias"), name
    assert again.config.decoder_start_token_id == 1 and again.config.decoder.add_cross_attention
    model_again, params_again = flaxbert.from_pretrained(tmp_path / "ours")
    assert model_again == model
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


def test_checkpoints_are_joined_with_a_new_cross_attention(tmp_path, caplog):
    config = flaxbert.BertConfig(**SIZES, hidden_size=16, num_attention_heads=2, unused={"cls_token_id": 2})
    bert = flaxbert.BertForMaskedLM(config)
    bert_params = initial(bert, IDS)
    flaxbert.save_pretrained(tmp_path / "bert", bert, bert_params)
    with caplog.at_level(logging.WARNING):
        model, params = flaxbert.EncoderDecoderModel.from_two(tmp_path / "bert", tmp_path / "bert")
    assert "20 missing" in caplog.text and "crossattention.self.query.weight" in caplog.text
    assert model.decoder_start_token_id == 2 and model.pad_token_id == 0
    assert not model.encoder.config.is_decoder and model.decoder.config.add_cross_attention
    for part in (params["encoder"]["embeddings"], params["decoder"]["bert"]["embeddings"]):
        jax.tree.map(np.testing.assert_array_equal, part, bert_params["bert"]["embeddings"])
    jax.tree.map(np.testing.assert_array_equal, params["decoder"]["predictions"], bert_params["predictions"])
    kernel = params["decoder"]["bert"]["layers"]["cross_attention"]["query"]["kernel"]
    assert 0.01 < float(jnp.std(kernel)) < 0.03
    flaxbert.save_pretrained(tmp_path / "both", model, params)
    transformers.EncoderDecoderModel.from_pretrained(tmp_path / "both")


def test_the_layer_between_two_widths_is_placed_on_the_mesh(tmp_path):
    for name, width in (("wide", 24), ("narrow", 16)):
        config = flaxbert.BertConfig(**SIZES, hidden_size=width, num_attention_heads=2)
        bert = flaxbert.BertForMaskedLM(config)
        flaxbert.save_pretrained(tmp_path / name, bert, initial(bert, IDS))
    mesh, rules = sharding.make_mesh(fsdp=4), sharding.FSDP
    model, params = flaxbert.EncoderDecoderModel.from_two(
        tmp_path / "wide", tmp_path / "narrow", decoder_start_token_id=1, mesh=mesh, rules=rules
    )
    wanted = sharding.tree_shardings(mesh, rules, model.logical_axes())
    assert params["enc_to_dec_proj"]["kernel"].sharding.spec[0] == "fsdp"
    same = jax.tree.map(lambda leaf, own: leaf.sharding.is_equivalent_to(own, leaf.ndim), params, wanted)
    assert all(jax.tree.leaves(same))


def test_tied_models_share_the_encoders_weights(tmp_path):
    config = flaxbert.BertConfig(**SIZES, hidden_size=16, num_attention_heads=2)
    bert = flaxbert.BertModel(config)
    flaxbert.save_pretrained(tmp_path / "bert", bert, initial(bert, IDS))
    join = functools.partial(flaxbert.EncoderDecoderModel.from_two, tmp_path / "bert", tmp_path / "bert")
    model, params = join(decoder_start_token_id=1, tied=True)
    assert params["decoder"]["bert"].keys() == {"layers"}
    assert params["decoder"]["bert"]["layers"].keys() == {"cross_attention", "cross_attention_norm"}
    untied, all_params = join(decoder_start_token_id=1)
    inputs = {"decoder_input_ids": np.maximum(LABELS, 1), "attention_mask": MASK}
    wanted = untied.apply({"params": all_params}, IDS, **inputs).logits
    np.testing.assert_allclose(model.apply({"params": params}, IDS, **inputs).logits, wanted, atol=1e-6)
    settings = flaxbert.GenerationSettings(max_new_tokens=4)
    prepared = prepare_for_generation(model, params)
    generated = [
        flaxbert.generate(*pair, IDS, attention_mask=MASK, settings=settings).sequences
        for pair in ((untied, all_params), (model, params), prepared)
    ]
    np.testing.assert_array_equal(generated[1], generated[0])
    np.testing.assert_array_equal(generated[2], generated[0])

    flaxbert.save_pretrained(tmp_path / "tied", model, params)
    again, params_again = flaxbert.from_pretrained(tmp_path / "tied")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "tied")
    logits = theirs(
        torch.tensor(IDS), attention_mask=torch.tensor(MASK), decoder_input_ids=torch.tensor(np.maximum(LABELS, 1))
    ).logits
    np.testing.assert_allclose(logits.detach().numpy(), wanted, atol=1e-5)

    # transformers 4 stores shared tensors once.
    import safetensors.numpy

    file = tmp_path / "tied" / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    names = {"decoder.bert." + name.removeprefix("encoder.") for name in tensors if name.startswith("encoder.")}
    safetensors.numpy.save_file({name: value for name, value in tensors.items() if name not in names}, file)
    jax.tree.map(np.testing.assert_array_equal, flaxbert.from_pretrained(tmp_path / "tied")[1], params)


def test_a_tied_folder_with_two_sets_of_weights_keeps_both(tmp_path, caplog):
    reference = reference_model()
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_encoder_decoder": True}
    wanted = flaxbert.from_pretrained(tmp_path)[1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, params = flaxbert.from_pretrained(tmp_path)
    assert not model.tied and "differ from the encoder's; both are kept" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_two_checkpoints_that_differ_are_not_tied(tmp_path):
    config = flaxbert.BertConfig(**SIZES, hidden_size=16, num_attention_heads=2)
    model = flaxbert.BertModel(config)
    for seed in range(2):
        params = initial(model, IDS, seed=seed)
        flaxbert.save_pretrained(tmp_path / str(seed), model, params)
    with pytest.raises(ValueError, match="tied is true, but the weights of .*1 differ from those of .*0"):
        flaxbert.EncoderDecoderModel.from_two(tmp_path / "0", tmp_path / "1", tied=True)


def test_the_tokenizer_and_the_settings_of_generation_are_saved_with_the_model(tmp_path):
    reference_model().save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]))
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    (tmp_path / "hf" / "generation_config.json").write_text('{"num_beams": 3}')
    model, params = flaxbert.from_pretrained(tmp_path / "hf")
    flaxbert.save_pretrained(tmp_path / "copy", model, params)
    for name in ("vocab.txt", "generation_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    decoder = model.decoder.clone(origin=tmp_path / "hf")
    flaxbert.save_pretrained(tmp_path / "decoder", decoder, params["decoder"])
    assert flaxbert.GenerationSettings.from_pretrained(tmp_path / "decoder").num_beams == 3


def test_what_does_not_fit_is_named(tmp_path):
    encoder = flaxbert.BertConfig(**SIZES, hidden_size=16, num_attention_heads=2)
    with pytest.raises(ValueError, match=r"config.replace\(is_decoder=True, add_cross_attention=True\)"):
        flaxbert.EncoderDecoderModel(flaxbert.BertModel(encoder), flaxbert.BertLMHeadModel(encoder))
    decoder = flaxbert.BertLMHeadModel(encoder.replace(is_decoder=True, add_cross_attention=True))
    with pytest.raises(ValueError, match=r"cannot be tied: embedding has the shapes \[40, 8\] and \[40, 16\]"):
        flaxbert.EncoderDecoderModel(flaxbert.BertModel(encoder.replace(hidden_size=8)), decoder, tied=True).init(
            jax.random.key(0), IDS
        )
    with pytest.raises(ValueError, match="decoder_start_token_id is 40; the decoder's vocabulary has 40 tokens"):
        flaxbert.EncoderDecoderModel(flaxbert.BertModel(encoder), decoder, decoder_start_token_id=40)
    model = flaxbert.EncoderDecoderModel(flaxbert.BertModel(encoder), decoder)
    params = initial(model, IDS)
    with pytest.raises(ValueError, match="decoder_start_token_id is None and pad_token_id None; both are needed"):
        model.shift_right(LABELS)
    with pytest.raises(ValueError, match="these are not the parameters of EncoderDecoderModel"):
        flaxbert.save_pretrained(tmp_path, model, params["decoder"])
    flaxbert.save_pretrained(tmp_path, model, params)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder": None}))
    with pytest.raises(ValueError, match="config.json has no 'decoder', the configuration of one of the two models"):
        flaxbert.from_pretrained(tmp_path)
    config["encoder"]["hidden_size"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="of another shape"):
        flaxbert.from_pretrained(tmp_path)
