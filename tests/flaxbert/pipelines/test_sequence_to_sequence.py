"""Texts written by an encoder-decoder equal those of transformers' model, as a stream and from the command line too."""

import json

import pytest
import torch
import transformers

from flaxbert import cli
from flaxbert.generation import GenerationSettings
from flaxbert.pipelines import SequenceToSequencePipeline
from tests.flaxbert.test_parity import randomise

TEXTS = ["Paris is", "a rather long text of some words", "x"]

pytestmark = pytest.mark.filterwarnings("ignore:Version v4.12.0")


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder_decoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "bert-base-uncased")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = [transformers.BertConfig(**sizes, intermediate_size=20, max_position_embeddings=24) for _ in range(2)]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    config.decoder_start_token_id, config.pad_token_id = tokenizer.cls_token_id, tokenizer.pad_token_id
    model = transformers.EncoderDecoderModel(config=config)
    randomise(model, 3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = transformers.GenerationConfig(
        max_length=7, decoder_start_token_id=tokenizer.cls_token_id, pad_token_id=0, no_repeat_ngram_size=1
    )
    settings.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def write(folder):
    return SequenceToSequencePipeline.from_pretrained(folder, batch_size=2)


def test_texts_equal_transformers(folder, write):
    """The folder's max_length counts the tokens of the decoder, the first one included."""
    model = transformers.EncoderDecoderModel.from_pretrained(folder).eval()
    tokenizer, texts = transformers.AutoTokenizer.from_pretrained(folder), []
    for text, found in zip(TEXTS, write(TEXTS), strict=True):
        with torch.no_grad():
            expected = model.generate(**_inputs(tokenizer(text, return_tensors="pt")), eos_token_id=102)
        (written,) = found.continuations
        texts.append(written.text)
        assert written.text == tokenizer.decode(expected[0], skip_special_tokens=True)
        assert written.tokens == expected.shape[1] - 1 == 6
    assert len({*texts}) == 3
    assert "".join(write.stream_text(TEXTS[1])) == texts[1]


def _inputs(encoding):
    return {name: encoding[name] for name in ("input_ids", "attention_mask")}


def test_the_command_predict_generate(folder, write, capsys):
    wanted = write(TEXTS[:1])[0].continuations[0].text
    assert cli.main(["predict", "generate", "--model", str(folder), TEXTS[0], "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["continuations"][0]["text"] == wanted
    assert cli.main(["predict", "generate", "--model", str(folder), TEXTS[0]]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == TEXTS[0] and out[1].endswith(f"  {wanted}") and TEXTS[0] not in out[1]
    assert cli.main(["predict", "generate", "--model", str(folder), TEXTS[0], "--stream"]) == 0
    assert capsys.readouterr().out == f"{TEXTS[0]}\n  {wanted}\n"


def test_what_does_not_fit_is_refused(folder, write):
    with pytest.raises(ValueError, match=r"texts\[1\] has 32 tokens; the model takes 24: shorten it"):
        write(["a", "a " * 30])
    with pytest.raises(ValueError, match="99 new tokens after a prompt of 1 need 99 positions; the model has 24"):
        SequenceToSequencePipeline.from_pretrained(folder, settings=GenerationSettings(max_new_tokens=99))
    with pytest.raises(ValueError, match="seed is 1 without sampling"):
        SequenceToSequencePipeline.from_pretrained(folder, seed=1)
