"""A small decoder that predicts the next token of a novel: a few minutes on a CPU, then text of its own.

    python -m train configs/causal_gutenberg.py --task.text David-Copperfield_766.txt
    flaxbert predict generate --model runs/causal_gutenberg/model 'My aunt looked at me' --do-sample

Reached on Project Gutenberg's David Copperfield (number 766, a paragraph a line; 476,532 tokens to train on): 4.377 nat
a token (perplexity 79.6) on the last twentieth of the novel, 25,081 tokens, 1.625 below their unigram entropy. Seed 0,
2 cores of an AMD EPYC beside other work, 2026-11-27.

With eight epochs instead of five the perplexity was 82.4: the novel is too short for more.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.algorithms import AdamW
from train.tasks.language_modelling import LanguageModelling

config = Config(
    task=LanguageModelling(text=("David-Copperfield_766.txt",), vocab_size=4096, max_length=64),
    model=Model(sizes=BertConfig.tiny(max_position_embeddings=64, initializer_range=0.05), dropout=0.0, scan=False),
    optim=Optim(learning_rate=3e-3, warmup=0.05, algorithm=AdamW(beta2=0.98)),
    run=Run(folder=Path("runs/causal_gutenberg"), batch_size=32, epochs=5, evaluate_every=250, checkpoint_every=250),
)
