"""BERT-large as Google pretrained it, second phase: pairs of up to 512 tokens, the last tenth of the steps.

    python -m train configs/pretrain_large_512.py

Continues from the model of `pretrain_large_128.py` on the same store. Optimizer and schedule start again, as with
Google's init_checkpoint. Google's recipe (Devlin et al., 2018, appendix A.2): 100,000 steps of 256 rows. Not run here:
both phases took Google four days on 64 TPU chips (section A.2). docs/pods.md has estimates of a step on TPU slices.
"""

from pathlib import Path

from flaxbert import AttentionImplementation, BertConfig, Remat
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.algorithms import BertAdam
from train.optim.schedules import Google
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(text="runs/corpus", max_length=512, max_predictions=80, copies=10),
    model=Model(
        pretrained=Path("runs/pretrain_large_128/model"),
        sizes=BertConfig.large(),
        dtype="bfloat16",
        remat=Remat.DOTS,
        attn_implementation=AttentionImplementation.FUSED,
    ),
    optim=Optim(learning_rate=1e-4, warmup=0.1, algorithm=BertAdam(), schedule=Google()),
    run=Run(
        folder=Path("runs/pretrain_large_512"),
        batch_size=256,
        steps=100_000,
        log_every=100,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    ),
)
