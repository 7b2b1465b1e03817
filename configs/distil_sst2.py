"""A student of three layers learns sentiment (SST-2 of GLUE) from a model of six, the one of configs/sst2.py.

    python -m train configs/sst2.py --task.train SST-2/train.tsv --task.dev SST-2/dev.tsv
    flaxbert convert runs/sst2/model student --keep-layers 1,3,5 --head DistilBertForSequenceClassification
    python -m train configs/distil_sst2.py --task.train SST-2/train.tsv --task.dev SST-2/dev.tsv
    python -m train configs/distil_sst2.py --distillation.teacher None --run.folder runs/distil_sst2_alone

The second command makes the student of every other layer of the teacher. The last one trains it without the teacher.

Not run here for an epoch. Dev accuracy, mean and deviation of seeds 0 to 2, after 157 steps on the first 5000 rows at
--optim.learning-rate 2e-4, from a teacher of 0.880 that had 1052 steps on all rows:

    the teacher's outputs alone, with the cosine term (this config)     0.828 +- 0.002
    half the labels, half the teacher (--distillation.hard-weight 0.5
    --distillation.soft-weight 0.5 --distillation.cosine-weight 0)      0.815 +- 0.012
    the labels alone                                                    0.818 +- 0.013

A run of one seed took 170 to 230 s on 2 cores of an AMD EPYC that other work shared, 2026-11-27.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.distillation import Distillation
from train.optim import Optim
from train.tasks.sequence_classification import SequenceClassification

config = Config(
    task=SequenceClassification(
        train="SST-2/train.tsv", dev="SST-2/dev.tsv", labels=("0", "1"), max_length=128, packed=True
    ),
    model=Model(pretrained=Path("student"), scan=False),
    distillation=Distillation(teacher=Path("runs/sst2/model"), hard_weight=0.0, soft_weight=1.0, cosine_weight=1.0),
    optim=Optim(learning_rate=5e-5, warmup=0.0),
    run=Run(folder=Path("runs/distil_sst2"), batch_size=32, epochs=1, log_every=100, seeds=(0, 1, 2)),
)
