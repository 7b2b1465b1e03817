"""New and rare entities in tweets and forum posts (WNUT-17), from the real all-MiniLM-L6-v2 weights.

    pip install -e '.[train,minilm]'
    python -m train configs/wnut17.py --task.train wnut17train.conll --task.dev emerging.dev.conll \
        --task.test emerging.test.annotated

Reached: entity F1 0.567 on dev, 0.437 on test (each word's most frequent training tag: 0.093 and 0.059), in 16 minutes
beside other work. 2 cores of an AMD EPYC, 2026-11-22.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.task import minilm_folder
from train.tasks.token_classification import TokenClassification

config = Config(
    task=TokenClassification(
        train="wnut17/wnut17train.conll",
        dev="wnut17/emerging.dev.conll",
        test="wnut17/emerging.test.annotated",
        max_length=64,
    ),
    # The weights are inside a wheel; --model.pretrained takes any other BERT folder.
    model=Model(pretrained=minilm_folder(), scan=False),
    optim=Optim(learning_rate=1e-4, warmup=0.1),
    run=Run(folder=Path("runs/wnut17"), batch_size=16, epochs=4, log_every=50),
)
