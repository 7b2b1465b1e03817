"""BERT-base as Google pretrained it, first phase: pairs of up to 128 tokens, nine tenths of the steps.

    python -m train.data.prepare TEXTS --tokenizer vocab.txt --output runs/corpus
    python -m train configs/pretrain_base_128.py

Google's recipe (Devlin et al., 2018, appendix A.2; create_pretraining_data.py and optimization.py of
google-research/bert): 256 rows for 900,000 steps, ten sets of pairs and masks, repeated. The last 100,000 steps are
`pretrain_base_512.py`. Not run here: both phases took Google four days on 16 TPU chips (section A.2). docs/pods.md
has estimates of a step on TPU slices.
"""

from pathlib import Path

from flaxbert import AttentionImplementation, BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.algorithms import BertAdam
from train.optim.schedules import Google
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(text="runs/corpus", max_length=128, max_predictions=20, copies=10),
    model=Model(sizes=BertConfig.base(), dtype="bfloat16", attn_implementation=AttentionImplementation.FUSED),
    optim=Optim(learning_rate=1e-4, warmup=10_000 / 900_000, algorithm=BertAdam(), schedule=Google()),
    run=Run(
        folder=Path("runs/pretrain_base_128"),
        batch_size=256,
        steps=900_000,
        log_every=100,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    ),
)
