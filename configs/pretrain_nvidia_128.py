"""BERT-large in large batches with LAMB, first phase: rows of 128 tokens.

    python -m train.data.prepare TEXTS --tokenizer vocab.txt --output runs/corpus
    python -m train configs/pretrain_nvidia_128.py

NVIDIA's recipe (DeepLearningExamples, PyTorch/LanguageModeling/BERT; You et al., 2019): 7038 steps of 65,536 rows. The
gradient-accumulation steps are for 8 GPUs of 80 GB, 64 rows each. Not run here: NVIDIA's own code takes 28 hours for
this phase at the 4591 sequences/s that NVIDIA publishes for 8 A100.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.algorithms import Lamb
from train.optim.schedules import Nvidia
from train.tasks.pretraining import Pretraining

config = Config(
    task=Pretraining(text="runs/corpus", max_length=128, max_predictions=20),
    model=Model(sizes=BertConfig.large(), dtype="bfloat16", scan=False),
    optim=Optim(learning_rate=6e-3, warmup=0.2843, algorithm=Lamb(), schedule=Nvidia()),
    run=Run(
        folder=Path("runs/pretrain_nvidia_128"),
        batch_size=65_536,
        gradient_accumulation_steps=128,
        evaluation_batch_size=512,
        steps=7038,
        log_every=10,
        evaluate_every=500,
        checkpoint_every=200,
    ),
)
