"""A student of half the layers is pretrained by its teacher, with the three terms of DistilBERT's loss.

    flaxbert convert google-bert/bert-base-uncased teacher --head BertForMaskedLM
    flaxbert convert teacher student --keep-layers 0,2,4,7,9,11 --head DistilBertForMaskedLM
    python -m train.data.prepare TEXTS --tokenizer teacher --output runs/texts
    python -m train configs/distil_pretraining.py

Layers, weights of the terms (5 : 2 : 1), temperature and learning rate are those of Sanh et al., 2019, and of the code
that its authors published; here the teacher's predictions count at masked positions alone. Not run here beyond two
steps from MiniLM's weights.
"""

from pathlib import Path

from flaxbert import DistilBertConfig
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.distillation import Distillation
from train.optim import Optim
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(text="runs/texts", segments=Segments.FULL_SENTENCES, max_length=128, heldout=0.02),
    model=Model(pretrained=Path("student"), sizes=DistilBertConfig(), scan=False),
    distillation=Distillation(
        teacher=Path("teacher"), temperature=2.0, soft_weight=5 / 8, hard_weight=2 / 8, cosine_weight=1 / 8
    ),
    optim=Optim(learning_rate=5e-4, warmup=0.05),
    run=Run(
        folder=Path("runs/distil_pretraining"),
        batch_size=64,
        steps=10_000,
        log_every=50,
        evaluate_every=1000,
        checkpoint_every=1000,
    ),
)
