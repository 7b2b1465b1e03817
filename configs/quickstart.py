"""A small BERT pretrained on the documentation inside every CPython: no download, no accelerator.

    python -m train configs/quickstart.py

Reached: held-out masked words 4.794 nat (perplexity 121, accuracy 0.214), 1.134 below the unigram entropy, after 1900
steps (3.2 M tokens); 1.081 and 0.914 below it with the seeds 1 and 2, whose held-out texts differ. "The [MASK] must be
a string." is filled with file, string, command. 130 s of training and evaluation, 223 s from a clean clone with pip, on
2 cores of an AMD EPYC beside tests, 2026-11-28.

Most steps have short examples of 32 tokens: among few positions the model learns sooner which words are neighbours.
With 64 tokens in each of 600 steps (2.5 M tokens, learning rate 2e-3, initializer range 0.02) the loss was 5.361 nat.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments, Stage
from train.optim import Optim
from train.optim.algorithms import AdamW
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(
        text="pydoc:",
        segments=Segments.STREAM,
        vocab_size=2048,
        max_length=64,
        stages=(Stage(1500, batch_size=32, max_length=32),),
        prompts=(
            "Return a new [MASK] object.",
            "The [MASK] must be a string.",
            "If the file does not exist, an [MASK] is raised.",
        ),
    ),
    # No dropout: minutes of training do not overfit, and dropout would slow the training down.
    model=Model(sizes=BertConfig.tiny(max_position_embeddings=64, initializer_range=0.05), dropout=0.0, scan=False),
    optim=Optim(learning_rate=3e-3, warmup=0.05, algorithm=AdamW(beta2=0.98)),
    run=Run(folder=Path("runs/quickstart"), batch_size=64, steps=1900, log_every=100, checkpoint_every=500),
)
