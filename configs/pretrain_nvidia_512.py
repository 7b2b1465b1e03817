"""BERT-large in large batches with LAMB, second phase: rows of 512 tokens.

    python -m train configs/pretrain_nvidia_512.py

Continues from the model of `pretrain_nvidia_128.py`. Optimizer and schedule start again, as in NVIDIA's recipe: 1563
steps of 32,768 rows. The gradient-accumulation steps are for 8 GPUs of 80 GB, 16 rows each. Not run here: NVIDIA's own
code takes 8.6 hours for this phase at the 1657 sequences/s that NVIDIA publishes for 8 A100.
"""

from pathlib import Path

from flaxbert import BertConfig, Remat
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.algorithms import Lamb
from train.optim.schedules import Nvidia
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(text="runs/corpus", max_length=512, max_predictions=80),
    model=Model(
        pretrained=Path("runs/pretrain_nvidia_128/model"),
        sizes=BertConfig.large(),
        dtype="bfloat16",
        remat=Remat.DOTS,
    ),
    optim=Optim(learning_rate=4e-3, warmup=0.128, algorithm=Lamb(), schedule=Nvidia()),
    run=Run(
        folder=Path("runs/pretrain_nvidia_512"),
        batch_size=32_768,
        gradient_accumulation_steps=256,
        evaluation_batch_size=128,
        steps=1563,
        log_every=10,
        evaluate_every=250,
        checkpoint_every=100,
    ),
)
