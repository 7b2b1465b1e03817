"""One sentiment model (SST-2 of GLUE) for any budget: configs/sst2.py's model, adapted to fewer tokens and layers.

    python -m train configs/sst2.py --task.train SST-2/train.tsv --task.dev SST-2/dev.tsv
    python -m train configs/sst2_adaptive.py --task.train SST-2/train.tsv --task.dev SST-2/dev.tsv
    python -m train.search configs/sst2_adaptive.py --search.metric accuracy --search.baseline runs/sst2/model
    flaxbert predict classify "a gem" --model runs/sst2_adaptive/model --point 50%@runs/sst2_adaptive/search/front.json

The third command finds SST-2/train.tsv and SST-2/dev.tsv by the settings below; other files need the same flags.

Not run here in full, nor with these settings: 300 steps on the first 5000 rows at --optim.learning-rate 5e-5 and
--length-adaptation.length-drop 0.2, from a model of half an epoch of configs/sst2.py. Dev accuracy of all 872 rows,
every layer keeping the same share of its tokens (constant ratio, no search):

    share of FLOPs                     100 %    70 %     50 %     35 %
    rows padded to 56 tokens
        adapted                        0.874    0.874    0.868    0.867
        not adapted                    0.880    0.881    0.870    0.861
    rows padded to the length of their batch
        adapted                        0.874    0.869    0.841    0.802
        not adapted                    0.880    0.870    0.841    0.779

The texts have 25 tokens on average. In rows of 56, padding is dropped first and half of the FLOPs cost a point at most,
adapted or not. In batches of similar length (python -m tests.train.length_shares configs/sst2_adaptive.py
--search.metric accuracy) texts lose tokens: half of the FLOPs cost three points or more, and the adapted model is
better at 35 % alone. There a layer keeps 0.60 of its tokens, at 50 % 0.74, while no sub-model of that training kept
less than 0.8. With 0.2, twelve layers lose as many tokens as six with 0.36, and the smallest sub-model of six has 58 %
of the FLOPs, so that a search finds no "50%"; with the 0.4 of this config it has 34 %. 2026-11-28.
"""

from pathlib import Path

from train.config import Config, Model, Run
from train.length_adaptation import LengthAdaptation
from train.optim import Optim
from train.tasks.sequence_classification import SequenceClassification

config = Config(
    task=SequenceClassification(train="SST-2/train.tsv", dev="SST-2/dev.tsv", labels=("0", "1"), max_length=64),
    model=Model(pretrained=Path("runs/sst2/model"), scan=False),
    # The published 0.2 is for twelve layers; see above.
    length_adaptation=LengthAdaptation(enabled=True, length_drop=0.4),
    optim=Optim(learning_rate=2e-5, warmup=0.0),
    run=Run(folder=Path("runs/sst2_adaptive"), batch_size=32, epochs=5, log_every=100),
)
