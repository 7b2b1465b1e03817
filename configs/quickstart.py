"""A small BERT pretrained on the documentation inside every CPython: no download, no accelerator.

    python -m train configs/quickstart.py

Reached: held-out masked words 5.361 nat, 0.568 below the unigram entropy, in 84 s; with a fresh environment 2 minutes
and 39 seconds. 2 cores of an AMD EPYC (Zen 3), 2026-11-22.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.optim import Optim
from train.optim.algorithms import AdamW
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(
        text="pydoc:",
        segments=Segments.STREAM,
        vocab_size=2048,
        max_length=64,
        prompts=(
            "Return a new [MASK] object.",
            "The [MASK] must be a string.",
            "If the file does not exist, an [MASK] is raised.",
        ),
    ),
    # Minutes of training cannot overfit: dropout would only slow it down.
    model=Model(sizes=BertConfig.tiny(max_position_embeddings=64), dropout=0.0, scan=False),
    optim=Optim(learning_rate=2e-3, warmup=0.2, algorithm=AdamW(beta2=0.98)),
    run=Run(folder=Path("runs/quickstart"), batch_size=64, steps=600, log_every=50, checkpoint_every=150),
)
