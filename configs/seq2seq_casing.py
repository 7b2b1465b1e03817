"""An encoder-decoder that restores the casing and the punctuation of a sentence: a few minutes on a CPU.

python -m train.data.casing_pairs gutenberg/*.txt --max-words 8 --output casing.tsv
python -m train configs/seq2seq_casing.py
flaxbert predict generate --model runs/seq2seq_casing/model 'what do you make it joe'
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.optim.algorithms import AdamW
from train.tasks.sequence_to_sequence import SequenceToSequence

config = Config(
    task=SequenceToSequence(
        train="casing.tsv",
        validation_split=0.02,
        max_length=32,
        max_target_length=32,
        tied=True,
        generated=200,
        vocab_size=2048,
    ),
    model=Model(sizes=BertConfig.tiny(max_position_embeddings=32, initializer_range=0.05), dropout=0.0, scan=False),
    optim=Optim(learning_rate=3e-3, warmup=0.05, algorithm=AdamW(beta2=0.98)),
    run=Run(folder=Path("runs/seq2seq_casing"), batch_size=64, steps=3000, evaluate_every=500, checkpoint_every=500),
)
