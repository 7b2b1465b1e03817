"""A small BERT pretrained on the documentation inside every CPython: no download, no accelerator.

python -m train configs/quickstart.py
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.masked_lm import MaskedLanguageModelling

config = Config(
    task=MaskedLanguageModelling(
        text="pydoc:",
        vocab_size=4096,
        max_length=64,
        prompts=(
            "Return a new [MASK] object.",
            "The argument must be a [MASK].",
            "Raises ValueError if the [MASK] is not found.",
        ),
    ),
    model=Model(sizes=BertConfig.tiny(max_position_embeddings=64)),
    optim=Optim(learning_rate=2e-3, warmup=0.1),
    run=Run(folder=Path("runs/quickstart"), batch_size=64, steps=1000, log_every=50),
)
