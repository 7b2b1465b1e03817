"""Chinese questions about Wikipedia (CMRC 2018), from any BERT checkpoint folder or from scratch.

    python -m train configs/cmrc.py --task.train cmrc2018_train.json --task.dev cmrc2018_dev.json \
        --task.validation-split None --model.pretrained bert-base-chinese
    python -m train configs/cmrc.py --task.train cmrc2018_trial.squadstyle.json --task.tokenizer vocab.txt \
        --optim.learning-rate 5e-4

With one file alone, whole articles of it are held out, at least a fifth of its questions. From scratch a thousand
questions teach little more than where answers tend to be: the second command is for trying.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.answer_sets import Rule
from train.tasks.question_answering import QuestionAnswering

config = Config(
    task=QuestionAnswering(
        train="cmrc2018/cmrc2018_trial.squadstyle.json",
        validation_split=0.2,
        # Answers are long: 30 tokens, which suit SQuAD, are enough for 66 % of the trial set's, 100 for 97 %.
        max_answer=100,
        rule=Rule.CMRC,
    ),
    # Without --model.pretrained: BERT-mini from scratch.
    model=Model(sizes=BertConfig.mini()),
    optim=Optim(learning_rate=3e-5, warmup=0.1),
    run=Run(folder=Path("runs/cmrc"), batch_size=16, epochs=2, log_every=25),
)
