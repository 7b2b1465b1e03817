"""Fine-tuning of a RoBERTa folder: the class comes from its family, and packed rows lose what rows apart do."""

import dataclasses

import jax
import numpy as np

from flaxbert import RobertaForSequenceClassification
from tests.flaxbert.families.test_roberta import write_classifier
from train.config import Config, Model, Run
from train.tasks.sequence_classification import SequenceClassification


def test_packed_rows_have_the_loss_of_rows_apart(tmp_path):
    folder = write_classifier(tmp_path / "model")
    rows = [
        ("The cat sat on the mat.", "yes"),
        ("A dog sat.", "no"),
        ("A log", "maybe"),
        ("the cat was glad", "no"),
    ] * 4
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    settings = SequenceClassification(
        train=str(tmp_path / "train.tsv"), dev=str(tmp_path / "dev.tsv"), max_length=34, packed=False
    )
    run = Run(folder=tmp_path / "run", batch_size=16, steps=1)
    config = Config(task=settings, model=Model(pretrained=folder), run=run)
    apart = config.task.prepare(config)
    packed = dataclasses.replace(settings, packed=True).prepare(config)
    assert apart.architecture is packed.architecture is RobertaForSequenceClassification
    assert "segment_ids" in packed.train[0] and "segment_ids" not in apart.train[0]
    model, params = apart.architecture.from_pretrained(folder, config=apart.config)
    losses = [
        jax.jit(lambda p, b, t=task: t.loss(model, p, b, None))(params, task.train[0]) for task in (apart, packed)
    ]
    assert losses[0].weight == losses[1].weight == 16
    np.testing.assert_allclose(losses[0].mean, losses[1].mean, rtol=0, atol=1e-5)
