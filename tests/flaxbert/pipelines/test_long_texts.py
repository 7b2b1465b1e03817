"""Memory of `tag` and `answer` on a text of a million pieces, beside the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flaxbert.saved_models import CONFIG, folder_of

ROOT = Path(__file__).parents[3]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
CODE = """
import json, resource, sys
from flaxbert import pipelines

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB

name, folder = sys.argv[1:]
pipeline = getattr(pipelines, name).from_pretrained(folder)
words, question = "a b c d e f g h ", ("a b",) if name == "QuestionAnsweringPipeline" else ()
texts = [words * count for count in (20_000, 125_000)]
items = [(*question, text) if question else text for text in texts]
pipeline(items[:1])
before = peak()
[result] = pipeline(items[1:])
print(json.dumps([peak() - before, result.entities[-1].end if not question else result.end]))
"""


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("EntityRecognitionPipeline", "BertForTokenClassification"),
        ("QuestionAnsweringPipeline", "BertForQuestionAnswering"),
    ],
)
def test_a_million_pieces_take_less_than_300_mb_beside_the_model(tmp_path, name, head):
    config = CONFIG.replace(max_position_embeddings=512, id2label=("B-X", "I-X", "B-Y"))
    folder = folder_of(head, tmp_path / "model", config=config)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", CODE, name, str(folder)], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown, end = json.loads(done.stdout)
    assert grown < 300 and end > 0
