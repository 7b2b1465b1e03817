"""A folder of a run that was written before settings were renamed can be resumed.

`fixtures/run_before_renames.tar.xz` was made at commit 4a809e9: the texts, vocabulary and folder of a run of four steps
on one CPU device, with the checkpoint of step 2 (that of step 4 was deleted) and the metrics of all steps.
"""

import json
import tarfile
from pathlib import Path

import pytest

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.ledger import read_ledger
from train.loop import run
from train.optim import Optim
from train.tasks.sequence_classification import SequenceClassification

ARCHIVE = Path(__file__).parent / "fixtures" / "run_before_renames.tar.xz"


def test_a_run_of_a_former_version_is_resumed(tmp_path, monkeypatch, capsys):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    stored = json.loads(Path("run/run.json").read_text())
    assert stored["run"]["micro_batches"] == 2 and stored["task"]["dev_share"] == 0.25
    former = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    sizes = BertConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    config = Config(
        SequenceClassification("train.tsv", tokenizer=Path("vocab.txt"), validation_split=0.25, max_length=16),
        Run(Path("run"), batch_size=16, gradient_accumulation_steps=2, steps=4, log_every=1, checkpoint_every=2),
        Model(sizes=sizes, dropout=0.0, vocab_multiple=8),
        Optim(learning_rate=1e-2),
    )
    run(config)
    assert "resumed from step 2" in capsys.readouterr().out
    assert [line.step for line in read_ledger(Path("run"))] == [2, 4]  # it had none
    found = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [line["step"] for line in former]
    for line, reference in zip(found, former, strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], rel=1e-5)
