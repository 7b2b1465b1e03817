"""The embedding benchmark without its models: what it compares and prints."""

from types import SimpleNamespace

import numpy as np
import pytest

from train.benchmark import embedding


class Fake:
    """Vectors of the texts' lengths, turned by an angle."""

    def __init__(self, angle=0.0):
        self.angle, self.calls, self.max_length = angle, 0, 16
        encode = lambda texts, pairs, max_length: [SimpleNamespace(ids=[0] * len(text)) for text in texts]  # noqa: E731
        self.tokenizer = SimpleNamespace(encode=encode)

    def __call__(self, texts):
        self.calls += 1
        return np.asarray([[len(text) * np.cos(self.angle), len(text) * np.sin(self.angle)] for text in texts])


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("four\n\nfifth\nsix\n")

    def run(*fakes):
        monkeypatch.setattr(embedding, "_both", lambda settings, size: [(f"fake {n}", f) for n, f in enumerate(fakes)])
        return embedding.main(["folder", str(tmp_path / "texts.txt"), "--count", "2", "--batch-sizes", "32"])

    return run


def test_implementations_take_turns_on_the_same_texts(run, capsys):
    fakes = Fake(), Fake(0.001)
    assert run(*fakes) == 0
    assert [fake.calls for fake in fakes] == [4, 4]  # one to compare, three rounds
    lines = capsys.readouterr().out.splitlines()
    assert "2 texts, 4.5 tokens on average" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[3:]] == ["fake 0", "fake 1"]


def test_vectors_that_differ_end_it(run, capsys):
    assert run(Fake(), Fake(0.1)) == 2
    assert (
        "the vectors of fake 0 and fake 1 differ: the smallest cosine of a text is 0.99500" in capsys.readouterr().err
    )
