import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from flaxbert.tokenizer import WordPieceTokenizer
from tests.train import corpora
from train.data.pretraining.datasets import open_text
from train.data.pretraining.preparation import Preparation, main, prepare_store
from train.data.pretraining.store import TokenStore

ARRAYS = ("tokens.npy", "sentences.npy", "documents.npy")


@pytest.fixture
def text(tmp_path):
    """2 MB, so that there are several pieces."""
    file = tmp_path / "text.txt"
    file.write_text("\n".join(corpora.lines(corpora.documents(4000))))
    corpora.tokenizer().save(tmp_path / "words", max_length=64)
    return file


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ARRAYS}


def flags(text, folder, *more):
    return [str(text), "--output", str(folder), "--tokenizer", str(text.parent / "words"), *map(str, more)]


def test_the_number_of_workers_changes_nothing(text, capsys):
    one, three = text.parent / "one", text.parent / "three"
    assert main(flags(text, one, "--workers", 1)) == 0
    assert main(flags(text, three, "--workers", 3)) == 0
    assert contents(one) == contents(three)
    store = TokenStore.open(one)
    assert store.document_count == 4000
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r".*one: 4,000 documents, [\d,]+ sentences, [\d,]+ tokens \(0\.00% unknown\) in [\d.]+ s", shown[0]
    )
    record = json.loads((one / "store.json").read_text())
    assert record["tokens"] == len(store.tokens) and record["made"]["text"] == [str(text)]
    assert sorted(path.name for path in one.iterdir()) == sorted([*ARRAYS, "store.json", "tokenizer"])
    assert not list(text.parent.glob("*.preparing"))


def test_a_killed_preparation_goes_on(text, monkeypatch):
    from train.data.pretraining import preparation

    whole, killed = text.parent / "whole", text.parent / "killed"
    prepare_store(Preparation((str(text),), whole, tokenizer=text.parent / "words", workers=1))
    aside = text.parent / "killed.preparing"
    # The real command, noting every piece, killed as soon as it has noted some.
    code = (
        "import sys\nfrom train.data.pretraining import preparation\n"
        "preparation._SAVE_INTERVAL = 1\npreparation._CHUNKS_AHEAD = 0\n"
        "if __name__ == '__main__':\n"
        "    from train.data.pretraining.preparation import main; sys.exit(main(sys.argv[1:]))"
    )
    script = text.parent / "slow.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, script, *flags(text, killed, "--workers", 1)], env=environment)
    try:
        while not (aside / "progress.json").exists():
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    noted = json.loads((aside / "progress.json").read_text())["pieces"]
    assert not killed.exists()
    done = []
    monkeypatch.setattr(
        preparation, "_tokenise_chunks", lambda *given, real=preparation._tokenise_chunks: _counted(real(*given), done)
    )
    prepare_store(Preparation((str(text),), killed, tokenizer=text.parent / "words", workers=2))
    assert contents(killed) == contents(whole)
    assert noted >= 1 and len(done) + noted == 4  # none was tokenised again


def _counted(found, done):
    for item in found:
        done.append(item)
        yield item


def interrupted(text, folder, **how):
    """A preparation whose text turns out to be damaged in its last line."""
    good = text.read_bytes()
    text.write_bytes(good + b"\xff")
    from train.data.pretraining import preparation

    before = preparation._SAVE_INTERVAL, preparation._CHUNKS_AHEAD
    preparation._SAVE_INTERVAL, preparation._CHUNKS_AHEAD = 1, 0
    try:
        with pytest.raises(ValueError, match="byte 0xff"):
            prepare_store(Preparation((str(text),), folder, tokenizer=text.parent / "words", workers=1, **how))
    finally:
        preparation._SAVE_INTERVAL, preparation._CHUNKS_AHEAD = before
    text.write_bytes(good)


def test_on_a_full_disk_it_says_so_and_goes_on_with_more_room(text):
    whole, full = text.parent / "whole", text.parent / "full"
    prepare_store(Preparation((str(text),), whole, tokenizer=text.parent / "words", workers=1))
    # No file may have more than 400 KiB: tokens.npy has more.
    command = ["bash", "-c", 'ulimit -f 400; exec "$@"', "-", sys.executable, "-m", "train.data.prepare"]
    done = subprocess.run([*command, *flags(text, full, "--workers", 1)], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    message = f"error: {full}.preparing: File too large; make room, then resume with the same command"
    assert done.stderr.splitlines()[-1] == message
    assert not full.exists()
    prepare_store(Preparation((str(text),), full, tokenizer=text.parent / "words", workers=1))
    assert contents(full) == contents(whole)


def test_after_a_mended_text_it_goes_on(text):
    prepare_store(Preparation((str(text),), text.parent / "whole", tokenizer=text.parent / "words", workers=1))
    interrupted(text, text.parent / "store")
    prepare_store(Preparation((str(text),), text.parent / "store", tokenizer=text.parent / "words", workers=1))
    assert contents(text.parent / "store") == contents(text.parent / "whole")


def test_it_does_not_go_on_with_another_text_or_other_settings(text):
    interrupted(text, text.parent / "store")
    again = Preparation((str(text),), text.parent / "store", tokenizer=text.parent / "words", workers=1)
    good = text.read_bytes()
    text.write_bytes(good[:100])
    with pytest.raises(ValueError, match="the store has [0-9]+ pieces, the text has only"):
        prepare_store(again)
    text.write_bytes(b"w1 " + good[3:])
    with pytest.raises(ValueError, match="the text has changed since the preparation that .*preparing holds"):
        prepare_store(again)
    other = Preparation((str(text),), text.parent / "store", tokenizer=text.parent / "words", lines="sentences")
    with pytest.raises(ValueError, match=r"other settings \(lines: 'paragraphs' -> 'sentences'\); delete it"):
        prepare_store(other)


def test_two_at_once(text):
    import fcntl

    aside = text.parent / "store.preparing"
    aside.mkdir()
    with (aside / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is preparing this store"):
            prepare_store(Preparation((str(text),), text.parent / "store", tokenizer=text.parent / "words"))


def test_a_vocabulary_is_learnt(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"Ärger mit Word{i % 7}. 自然语言" for i in range(50)))
    cased = ["--vocab-size", "60", "--no-lowercase", "--no-chinese-characters", "--workers", "1"]
    assert main([str(tmp_path / "a.txt"), "--output", str(tmp_path / "store"), *cased]) == 0
    tokenizer = WordPieceTokenizer.load(tmp_path / "store" / "tokenizer")
    assert tokenizer.vocab_size <= 60 and not tokenizer.lowercase
    assert {"Ärger", "自然语言"} <= set(tokenizer.vocabulary)


def test_paragraphs_or_sentences(tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2. W3 w4.\nw5")
    corpora.tokenizer([*corpora.WORDS, "."]).save(tmp_path / "words", max_length=64)
    for kind, count in (("paragraphs", 3), ("sentences", 2)):
        main(flags(tmp_path / "a.txt", tmp_path / kind, "--lines", kind, "--workers", 1))
        assert len(TokenStore.open(tmp_path / kind).sentences) - 1 == count


def test_a_list_of_words(tmp_path):
    (tmp_path / "a.txt").write_text("自然语言。")
    (tmp_path / "list.txt").write_text("自然 12 n\n语 3\n")
    corpora.tokenizer(list("自然语言。")).save(tmp_path / "words", max_length=64)
    assert main(flags(tmp_path / "a.txt", tmp_path / "store", "--words", tmp_path / "list.txt", "--workers", 1)) == 0
    np.testing.assert_array_equal(TokenStore.open(tmp_path / "store").word_starts, [True, False, True, True, True])
    (tmp_path / "list.txt").write_text("语\n")
    with pytest.raises(ValueError, match=r"list\.txt: holds no word of two characters"):
        prepare_store(Preparation((str(tmp_path / "a.txt"),), tmp_path / "other", words=tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (["--output", "there"], "there: already exists"),
        (["--tokenizer", "none.txt"], "no such file; a tokenizer is a tokenizer.json or a vocab.txt"),
        (["--tokenizer", "short.txt"], r"short\.txt: the vocabulary lacks \[MASK\]"),
        (["--workers", "0"], "workers is 0; it must be at least 1"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["empty.txt"], "empty.txt: holds no text"),
        (["binary"], "binary:1: "),
    ],
)
def test_mistakes_are_told_and_leave_nothing(tmp_path, monkeypatch, capsys, change, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "good.txt").write_text("w1\n\nw2")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 100)
    corpora.tokenizer().save(tmp_path / "words", max_length=64)
    (tmp_path / "short.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nw1\n")
    text = [] if change[0][0] != "-" else ["good.txt"]
    given = ["--output", "made", "--tokenizer", "words", "--workers", "1"]
    try:
        assert main([*text, *given, *change]) == 2
    except SystemExit as ended:  # settings that cannot be are told by tyro
        assert ended.code == 2
    assert error.replace("\\", "") in capsys.readouterr().err
    assert not (tmp_path / "made").exists() and not list((tmp_path / "there").iterdir())


def test_a_wrong_flag_names_its_neighbours(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["a.txt", "--output", "b", "--tokeniser", "c"])
    assert ended.value.code == 2
    assert "--tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("ที่นี่มีน้ำ ผู้ใหญ่", "Thai"),
        ("हिन्दी में कुछ शब्द", "Devanagari"),
        ("أَلسَّلَامُ عَلَيْكُمْ", "Arabic"),
        ("Voilà, l'été à Zürich", None),
        ("Чёрный йод", None),
    ],
)
def test_stripped_marks_of_a_script_are_reported(tmp_path, capsys, text, script):
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join([text] * 3), encoding="utf-8")
    settings = {"vocab_size": 100, "workers": 1}
    prepare_store(Preparation((str(file),), tmp_path / "uncased", **settings))
    shown = capsys.readouterr().err
    assert (f"strips marks from {script} letters" in shown) if script else ("strips marks" not in shown)
    tokenizer = WordPieceTokenizer.load(tmp_path / "uncased" / "tokenizer")
    open_text([str(file)], tokenizer, learn=None)  # text that a run reads without a store
    assert ("--task.no-lowercase" in capsys.readouterr().err) == bool(script)
    prepare_store(Preparation((str(file),), tmp_path / "cased", lowercase=False, **settings))
    assert "strips marks" not in capsys.readouterr().err
