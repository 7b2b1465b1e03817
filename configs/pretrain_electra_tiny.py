"""ELECTRA of BERT-tiny's size on Wikipedia's introductions: a generator of half its width, and a discriminator.

    python -m train.data.prepare wiki_en.txt --vocab-size 8192 --output runs/wikipedia
    python -m train configs/pretrain_electra_tiny.py

The run leaves the discriminator in runs/pretrain_electra_tiny/model, which is the model to fine-tune, and the generator
beside it. Not yet run to its end.

A short run of 1297 steps (310 s) beside 1600 steps of configs/pretrain_tiny.py with the same FLOPs (182 s), on 10 MB of
the introductions and 2048 tokens of vocabulary; both models then trained with configs/sst2.py on 10,000 sentences, rate
5e-4, dropout 0.1, two epochs, three seeds: dev accuracy 0.664, standard deviation 0.018, beside BERT's 0.704, 0.010.
Such a run is too short for ELECTRA: its discriminator had not begun to find replaced tokens (recall 0). 2 cores,
2026-11-28.
"""

from pathlib import Path

from flaxbert import ElectraConfig
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Stage
from train.optim import Optim
from train.optim.algorithms import AdamW
from train.tasks.replaced_tokens import ReplacedTokens

config = Config(
    task=ReplacedTokens(
        text="runs/wikipedia",
        max_length=128,
        row_length=256,
        stages=(Stage(15_000, max_length=32),),
        heldout=0.01,
        generator_size=0.5,
        prompts=("She was born in [MASK] 1950.", "It is located in the [MASK] of France."),
    ),
    model=Model(
        sizes=ElectraConfig(
            num_hidden_layers=2,
            hidden_size=128,
            num_attention_heads=2,
            intermediate_size=512,
            initializer_range=0.05,
        ),
        dropout=0.0,
        scan=False,
    ),
    optim=Optim(learning_rate=2e-3, warmup=0.05, algorithm=AdamW(beta2=0.98)),
    run=Run(
        folder=Path("runs/pretrain_electra_tiny"),
        batch_size=8,
        steps=22_000,
        log_every=100,
        evaluate_every=1000,
        checkpoint_every=2000,
    ),
)
