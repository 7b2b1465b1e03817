"""placeholder

python -m train configs/seq2seq_casing.py
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.algorithms import AdamW
from train.tasks.sequence_to_sequence import SequenceToSequence

config = Config(
    task=SequenceToSequence(
        train="casing.tsv", validation_split=0.02, vocab_size=4096, max_length=32, max_target_length=32, generated=200
    ),
    model=Model(sizes=BertConfig.tiny(max_position_embeddings=32, initializer_range=0.05), dropout=0.0),
    optim=Optim(learning_rate=2e-3, warmup=0.05, algorithm=AdamW(beta2=0.98)),
    run=Run(folder=Path("runs/seq2seq_casing"), batch_size=64, epochs=5, evaluate_every=1000, checkpoint_every=1000),
)
