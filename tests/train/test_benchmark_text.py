import re

from tests.train import corpora
from train.benchmark.text import main


def test_text_to_tokens_and_tokens_to_batches(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(corpora.lines(corpora.documents(300))))
    corpora.tokenizer().save(tmp_path / "words", max_length=64)
    assert main(["prepare", str(text), "--tokenizer", str(tmp_path / "words"), "--workers", "1", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"prepare, 1 processes: [\d,]+ tokens/s \([\d,]+ to [\d,]+\)", shown[0])
    ours, library = (int(re.search(r": ([\d,]+) tokens", line)[1].replace(",", "")) for line in shown[:2])
    assert shown[2] == f"the library alone is {library / ours:.2f} times as fast"

    from train.data.corpus.preparation import Preparation, prepare

    prepare(Preparation((str(text),), tmp_path / "store", tokenizer=tmp_path / "words", workers=1))
    assert main(["batches", str(tmp_path / "store"), "--rounds", "1", "--seconds", "0.01"]) == 0
    assert "pairs of 512 in rows of 512: " in capsys.readouterr().out


def test_no_text(tmp_path, capsys):
    assert main(["batches", str(tmp_path / "none")]) == 2
    assert "no store.json there" in capsys.readouterr().err
