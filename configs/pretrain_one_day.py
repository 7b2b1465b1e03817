"""BERT-base from scratch on one GPU in a day.

    python -m train.data.prepare TEXTS --tokenizer vocab.txt --output runs/corpus
    python -m train configs/pretrain_one_day.py

The settings on which studies of small budgets agree (Izsak et al., 2021; Geiping and Goldstein, 2022): rows of 128
tokens without padding, large batches, a high learning rate, no dropout, no next-sentence prediction. 18,000 steps are
9.4 billion tokens: 24 hours at the 110,800 tokens/s that MosaicML measured for BERT-base of this length on one A100.
Not run here.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.optim import Optim
from train.optim.algorithms import AdamW
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(text="runs/corpus", segments=Segments.STREAM, max_length=128),
    model=Model(sizes=BertConfig.base(), dropout=0.0, dtype="bfloat16", scan=False),
    optim=Optim(learning_rate=1e-3, warmup=0.06, algorithm=AdamW(beta2=0.98)),
    run=Run(
        folder=Path("runs/pretrain_one_day"),
        batch_size=4096,
        gradient_accumulation_steps=16,
        evaluation_batch_size=256,
        steps=18_000,
        log_every=20,
        evaluate_every=1000,
        checkpoint_every=500,
    ),
)
