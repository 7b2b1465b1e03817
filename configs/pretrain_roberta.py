"""BERT-base as RoBERTa was trained: whole sentences without pairs, new masks in every epoch, large batches.

    python -m train.data.prepare TEXTS --tokenizer vocab.txt --output runs/corpus
    python -m train configs/pretrain_roberta.py

Liu et al., 2019, table 9, except for the byte-level vocabulary: 500,000 steps of 8192 rows of 512 tokens. The
gradient-accumulation steps are for 32 devices, 32 rows each. Not run here: at 40% of the peak of H100s, 32 of them
would need 27 hours (2.1 trillion tokens, 588 million operations each).
"""

from pathlib import Path

from flaxbert import BertConfig, Remat
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.optim import Optim
from train.optim.algorithms import AdamW
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(text="runs/corpus", segments=Segments.FULL_SENTENCES, exact_rate=False, max_length=512),
    model=Model(sizes=BertConfig.base(), dtype="bfloat16", remat=Remat.DOTS),
    optim=Optim(learning_rate=6e-4, warmup=0.048, algorithm=AdamW(beta2=0.98, epsilon=1e-6)),
    run=Run(
        folder=Path("runs/pretrain_roberta"),
        batch_size=8192,
        gradient_accumulation_steps=8,
        evaluation_batch_size=1024,
        steps=500_000,
        log_every=100,
        evaluate_every=10_000,
        checkpoint_every=5000,
    ),
)
