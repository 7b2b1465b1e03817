"""BERT-large pretrained on rows of 512 tokens: the last tenth of the steps.

python -m train configs/pretrain_large_512.py --task.text TEXTS --task.tokenizer vocab.txt \
    --model.pretrained runs/pretrain_large_128/model

Google's recipe (Devlin et al., 2018, appendix A.2, and optimization.py of google-research/bert), but for the prediction
of the next sentence: 100,000 steps of 256 rows of 512 tokens, after 900,000 of 128. Not run yet; docs/pods.md has
estimates of a step on TPU slices.
"""

from pathlib import Path

from flaxbert import Attention, BertConfig, Remat
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.adam import BertAdam
from train.optim.schedules import Google
from train.tasks.pretraining import Pretraining, Segments

config = Config(
    task=Pretraining(text="corpus", tokenizer=Path("vocab.txt"), segments=Segments.STREAM, max_length=512),
    model=Model(sizes=BertConfig.large(), dtype="bfloat16", remat=Remat.DOTS, attn_implementation=Attention.PALLAS),
    optim=Optim(learning_rate=1e-4, warmup=0.1, algorithm=BertAdam(), schedule=Google()),
    run=Run(
        folder=Path("runs/pretrain_large_512"),
        batch_size=256,
        steps=100_000,
        log_every=100,
        evaluate_every=10_000,
        checkpoint_every=10_000,
    ),
)
