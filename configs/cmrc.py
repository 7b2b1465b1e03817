"""Chinese questions about Wikipedia (CMRC 2018), from any BERT checkpoint folder or from scratch.

    python -m train configs/cmrc.py --task.train cmrc2018_train.json --task.dev cmrc2018_dev.json \
        --task.validation-split None --model.pretrained bert-base-chinese
    python -m train configs/cmrc.py --task.train cmrc2018_trial.squadstyle.json --task.tokenizer vocab.txt \
        --optim.learning-rate 5e-4

With one file alone, whole articles are held out, with at least a fifth of its questions. The second command is only to
try the task: from scratch, a thousand questions teach little more than the usual positions of answers.
"""

from pathlib import Path

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.optim import Optim
from train.tasks.answer_sets import MatchingRule
from train.tasks.question_answering import QuestionAnswering

config = Config(
    task=QuestionAnswering(
        train="cmrc2018/cmrc2018_trial.squadstyle.json",
        validation_split=0.2,
        # Answers are long: SQuAD's limit of 30 tokens covers 66% of the trial set's answers, 100 tokens 97%.
        max_answer=100,
        rule=MatchingRule.CMRC,
    ),
    # Without --model.pretrained, BERT-mini from scratch.
    model=Model(sizes=BertConfig.mini()),
    optim=Optim(learning_rate=3e-5, warmup=0.1),
    run=Run(folder=Path("runs/cmrc"), batch_size=16, epochs=2, log_every=25),
)
