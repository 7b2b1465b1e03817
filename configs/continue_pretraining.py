"""A converted checkpoint, trained further on your own texts before fine-tuning.

    flaxbert convert google-bert/bert-base-uncased bert
    python -m train.data.prepare TEXTS --tokenizer bert --output runs/texts
    python -m train configs/continue_pretraining.py

The checkpoint's own vocabulary and both of its heads are used; heads that it does not have are newly initialised. The
learning rate is the one that the README of google-research/bert recommends. Not run here: a pass over 10 million tokens
is 2500 steps, 90 seconds at the 110,800 tokens/s that MosaicML measured for BERT-base of this length on one A100.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(text="runs/texts", max_length=128, heldout=0.02),
    model=Model(pretrained=Path("bert"), scan=False),
    optim=Optim(learning_rate=2e-5, warmup=0.1),
    run=Run(
        folder=Path("runs/continued"),
        batch_size=32,
        steps=10_000,
        log_every=50,
        evaluate_every=1000,
        checkpoint_every=1000,
    ),
)
