"""One sentiment model (SST-2 of GLUE) for any budget: configs/sst2.py's model, adapted to fewer tokens and layers.

    python -m train configs/sst2.py --task.train SST-2/train.tsv --task.dev SST-2/dev.tsv
    python -m train configs/sst2_adaptive.py --task.train SST-2/train.tsv --task.dev SST-2/dev.tsv
    python -m train.search configs/sst2_adaptive.py --search.metric accuracy --search.baseline runs/sst2/model
    flaxbert predict classify "a gem" --model runs/sst2_adaptive/model --point 50%@runs/sst2_adaptive/search/front.json

The third command finds SST-2/train.tsv and SST-2/dev.tsv by the settings below; other files need the same flags.

Not run here in full.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.length_adaptation import LengthAdaptation
from train.optim import Optim
from train.tasks.sequence_classification import SequenceClassification

config = Config(
    task=SequenceClassification(train="SST-2/train.tsv", dev="SST-2/dev.tsv", labels=("0", "1"), max_length=64),
    model=Model(pretrained=Path("runs/sst2/model"), scan=False),
    length_adaptation=LengthAdaptation(enabled=True),
    optim=Optim(learning_rate=2e-5, warmup=0.0),
    run=Run(folder=Path("runs/sst2_adaptive"), batch_size=32, epochs=5, log_every=100),
)
