"""Chinese entities of ten types (CLUENER), from any BERT checkpoint folder or from scratch.

    python -m train configs/cluener.py --task.train train.jsonl --model.pretrained bert-base-chinese
    python -m train configs/cluener.py --task.train train.jsonl --task.tokenizer vocab.txt --optim.learning-rate 5e-4

A random tenth of the sentences is held out. With a dev file: --task.dev dev.jsonl --task.validation-split None

Reached with the second command and seed 0: entity F1 0.383 on the 1075 held-out sentences; 0.464 when seqeval's strict
mode reads the same tags. Each character's most frequent training tag has 0.051. 443 s beside other work, 2 cores of an
AMD EPYC, 2026-11-23.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.token_classification import TokenClassification

config = Config(
    # Texts have up to 50 characters; each character is a token.
    task=TokenClassification(train="cluener/train.jsonl", validation_split=0.1, max_length=64),
    # Without --model.pretrained, BERT-mini from scratch.
    model=Model(sizes=BertConfig.mini()),
    optim=Optim(learning_rate=3e-5, warmup=0.1),
    run=Run(folder=Path("runs/cluener"), batch_size=32, epochs=4, log_every=50),
)
