from train.benchmark.text import main


def test_no_store(tmp_path, capsys):
    assert main(["batches", str(tmp_path / "none")]) == 2
    assert "no store.json there" in capsys.readouterr().err
