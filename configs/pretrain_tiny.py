"""BERT-tiny on Wikipedia's introductions, masked words and next sentences: half an hour on a CPU.

python -m train.data.prepare wiki_en.txt --vocab-size 8192 --output runs/wikipedia
python -m train configs/pretrain_tiny.py

Reached on wiki_en.txt (27,217 introductions, 14.1 M tokens), held-out documents: masked words 6.121 nat (perplexity
455, accuracy 0.149; unigram entropy 6.885), next sentences 0.813 (the commoner answer: 0.592), in 2561 s beside
other work. 2 cores of an AMD EPYC (Zen 3), 2026-11-22.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.adam import AdamW
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(
        text="runs/wikipedia",
        max_length=128,
        row_length=256,
        heldout=0.01,
        prompts=("She was born in [MASK] 1950.", "It is located in the [MASK] of France."),
    ),
    # Two epochs cannot overfit so small a model: dropout would only slow it down.
    model=Model(sizes=BertConfig.tiny(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), scan=False),
    optim=Optim(learning_rate=1e-3, warmup=0.05, algorithm=AdamW(beta2=0.98)),
    run=Run(
        folder=Path("runs/pretrain_tiny"),
        batch_size=8,
        steps=12_000,
        log_every=100,
        evaluate_every=1000,
        checkpoint_every=2000,
    ),
)
