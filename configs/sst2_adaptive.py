"""One sentiment model (SST-2 of GLUE) for any budget: configs/sst2.py's model, adapted to fewer tokens and layers.

    python -m train configs/sst2.py --task.train SST-2/train.tsv --task.dev SST-2/dev.tsv
    python -m train configs/sst2_adaptive.py --task.train SST-2/train.tsv --task.dev SST-2/dev.tsv
    python -m train.search configs/sst2_adaptive.py --search.metric accuracy --search.baseline runs/sst2/model
    flaxbert predict classify "a gem" --model runs/sst2_adaptive/model --point 50%@runs/sst2_adaptive/search/front.json

The third command finds SST-2/train.tsv and SST-2/dev.tsv by the settings below; other files need the same flags.

Not run here in full: 300 steps on the first 5000 rows at --optim.learning-rate 5e-5, from a model of half an epoch
of configs/sst2.py, 22 minutes beside other work. Dev accuracy, all 872 rows padded to 56 tokens, every layer
keeping the same share of its tokens (constant ratio, no search):

    share of FLOPs      100 %    70 %     50 %     35 %
    adapted             0.874    0.874    0.868    0.867
    not adapted         0.880    0.881    0.870    0.861

So short a run, on a part of the rows, cost the full model 0.006 and gains only at 35 %. Dev texts have 25 tokens on
average, so that up to half of the FLOPs are padding. 2 cores of an AMD EPYC, 2026-11-28.
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
