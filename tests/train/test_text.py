import pytest

from train.data.text import PYDOC, read_documents


def test_blank_lines_end_documents(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufefffirst\r\n  second \n\n \nthird\n".encode())
    assert read_documents(str(file)) == ["first\nsecond", "third"]


def test_a_folder_is_read_by_name(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub" / "c.txt").write_text("c")
    (tmp_path / "d.csv").write_text("d")
    assert read_documents(str(tmp_path)) == ["a", "b", "c"]


def test_python_documentation_is_there_and_always_the_same():
    first, again = read_documents(PYDOC), read_documents(PYDOC)
    assert first == again
    assert len(first) > 2000 and sum(map(len, first)) > 1_000_000


def test_wikipedia_documents(data_dir):
    assert len(read_documents(str(data_dir / "corpus" / "wiki_en.txt"))) == 27_217


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "holds no text"),
        (b"\n \n", "holds no text"),
        (b"good\nbad \xff\n", r"a\.txt:2: byte 0xff is not UTF-8"),
        (b"good\n\nbad\0", r"a\.txt:3: a NUL byte"),
    ],
)
def test_unreadable_files(tmp_path, content, error):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=error):
        read_documents(str(tmp_path / "a.txt"))


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_documents(str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match=r"holds no \.txt file"):
        read_documents(str(tmp_path))
