"""The benchmark of text generation: all implementations give the same tokens, or it ends."""

import numpy as np
import pytest

import flaxbert
from flaxbert import BertConfig
from train.benchmark import decoding

pytestmark = pytest.mark.slow  # five programs are compiled
FLAGS = ["--sizes", "tiny", "--rows", "2", "--prompt", "4", "--length", "36", "--rounds", "1"]


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
    config = BertConfig(**sizes, num_hidden_layers=1, max_position_embeddings=40, is_decoder=True)
    monkeypatch.setattr(flaxbert.BertConfig, "tiny", lambda **changes: config)


def test_the_table_has_all_implementations(capsys):
    assert decoding.main(FLAGS) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2] for row in rows] == ["flaxbert", "torch", "no cache"]
    assert decoding.main([*FLAGS, "--num-beams", "2"]) == 0
    assert capsys.readouterr().out.count("\n") == 4


def test_other_tokens_end_it(monkeypatch, capsys):
    monkeypatch.setattr(decoding, "_generate_without_cache", lambda *given: np.zeros((2, 36)))
    assert decoding.main(FLAGS) == 1
    assert "error: tiny, 2 prompts: the tokens of no cache are others" in capsys.readouterr().err
