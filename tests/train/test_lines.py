import bz2
import gzip
import json
import lzma

import pytest

from train.data.bad_rows import BadRows
from train.data.pretraining.reader import END, PYDOC, TextReader


def read(*sources, **how):
    return list(TextReader([str(source) for source in sources], **how))


def test_blank_lines_end_documents(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufefffirst\r\n  second \n\n \nthird\n".encode())
    assert read(file) == ["first", "second", END, "third", END]


def test_a_folder_is_read_by_name_and_what_is_no_text_is_left_out(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "sub" / "c.txt.gz").write_bytes(gzip.compress(b"c"))
    (tmp_path / "d.csv").write_text("d")
    (tmp_path / "empty.txt").write_text("")
    assert read(tmp_path) == ["a", END, "b", END, "c", END]


def test_sources_are_read_in_the_order_given(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)  # without an ending: plain text
    assert read(tmp_path / "b", tmp_path / "a") == ["b", END, "a", END]


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_compressed_files(tmp_path, ending):
    import pyarrow

    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    packers["zst"] = lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)
    text = "\n".join(f"line {i}" for i in range(10_000)).encode()
    file = tmp_path / f"a.txt.{ending}"
    file.write_bytes(packers[ending](text))
    assert read(file) == [*text.decode().split("\n"), END]
    file.write_bytes(packers[ending](text)[:-20])
    with pytest.raises(ValueError, match=rf"a\.txt\.{ending}: cannot be unpacked"):
        read(file)


def test_records_are_documents(tmp_path):
    records = [{"text": "one\n\ntwo", "id": 1}, {"text": None}, {"text": "  "}, {"text": "three"}]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    assert read(lines, bad_rows=BadRows.SKIP) == ["one", "two", END, "three", END]
    with pytest.raises(ValueError, match=r"a\.jsonl:2: 'text' is None, expected a string.*--task\.bad-rows skip"):
        read(lines)
    import pyarrow
    import pyarrow.parquet

    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": [record["text"] for record in records]}), table)
    assert read(table, column="body", bad_rows=BadRows.SKIP) == ["one", "two", END, "three", END]
    packed = tmp_path / "b.parquet.gz"
    packed.write_bytes(gzip.compress(table.read_bytes()))
    assert read(packed, column="body", bad_rows=BadRows.SKIP) == ["one", "two", END, "three", END]
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'text'; found 'body'"):
        read(table)


def test_a_data_set(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["one", "two\nlines"], "n": [1, 2]}).save_to_disk(str(tmp_path / "set"))
    name = f"datasets:{tmp_path / 'set'}"
    assert read(name) == ["one", END, "two", "lines", END]
    with pytest.raises(ValueError, match="no column 'body'; found 'text', 'n'"):
        read(name, column="body")
    with pytest.raises(ValueError, match="expected a string"):
        read(name, column="n")


def test_how_much_has_been_read(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n".join(f"line {i}" for i in range(50_000)))
    reader = TextReader([str(tmp_path)])
    seen = []
    for number, _ in enumerate(reader):
        if number % 10_000 == 0:
            seen.append(reader.fraction)
    assert seen == sorted(seen) and seen[0] < 0.1 and 0.4 < seen[5] < 0.6 and reader.fraction == 1.0
    assert TextReader([PYDOC]).fraction is None


def test_python_documentation_is_there_and_always_the_same():
    first, again = read(PYDOC), read(PYDOC)
    assert first == again
    assert first.count(END) > 2000 and sum(map(len, first)) > 1_000_000


def test_wikipedia_documents(data_dir):
    assert read(data_dir / "corpus" / "wiki_en.txt").count(END) == 27_217


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"good\nbad \xff\n", r"a\.txt:2: byte 0xff at character 5 is not UTF-8"),
        (b"good\n\nbad\0", r"a\.txt:3: a NUL character \(UTF-16, or not a text file\?\) at character 4"),
        ("text".encode("utf-16"), r"a\.txt:1: byte 0xff"),
        (b"\x7fELF\x02\x01\x01\x00\x00\x80\x90", r"a\.txt:1: "),
    ],
)
def test_unreadable_text(tmp_path, content, error):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=error):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"text": "cut', r"a\.jsonl:2: not (JSON|readable as JSON)"),
        ("[" * 5000, r"a\.jsonl:2: not (JSON|readable as JSON)"),
        ('["text"]', r"a\.jsonl:2: \['text'\] is not an object"),
        ('{"body": ""}', r"a\.jsonl:2: no 'text' beside 'body'"),
        ('{"text": 5}', r"a\.jsonl:2: 'text' is 5, expected a string"),
        ('{"text": "\\ud800"}', r"a\.jsonl:2: 'text': a lone surrogate"),
    ],
)
def test_unreadable_records(tmp_path, line, error):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good"}}\n{line}\n')
    with pytest.raises(ValueError, match=error):
        read(tmp_path / "a.jsonl")


def test_no_table(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: "):
        read(tmp_path / "a.parquet")


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        TextReader([str(tmp_path / "none.txt")])
    with pytest.raises(FileNotFoundError, match=r"holds no \.txt, \.jsonl"):
        TextReader([str(tmp_path)])


def test_output_of_wikiextractor(tmp_path):
    (tmp_path / "AA").mkdir()
    records = [{"id": "1", "title": "One", "text": "One\n\nfirst."}, {"id": "2", "title": "Two", "text": "Two"}]
    (tmp_path / "AA" / "wiki_00").write_text("".join(json.dumps(record) + "\n" for record in records))
    tagged = '<doc id="3" url="https://a?b=3" title="A > B">\nThree\n\nthird.\n\n</doc>\n<doc id="4">\nFour\n</doc>\n'
    (tmp_path / "AA" / "wiki_01.bz2").write_bytes(bz2.compress(tagged.encode()))
    (tmp_path / "AA" / "README").write_text("about")
    expected = ["One", "first.", END, "Two", END, "Three", "third.", END, "Four", END]
    assert read(tmp_path) == expected
    assert read(tmp_path / "AA" / "wiki_00") == expected[:5]
    with pytest.raises(ValueError, match=r"wiki_00:1: no 'body' beside 'id', 'title', 'text'"):
        read(tmp_path / "AA" / "wiki_00", column="body")


def test_braces_in_plain_text(tmp_path):
    for text in ("{", "{}", "{not json}", "[1]"):
        (tmp_path / "a").write_text(text + "\nmore")
        assert read(tmp_path / "a") == [text, "more", END]


def test_what_is_no_text(tmp_path):
    (tmp_path / "dump.xml").write_text('<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">\n<page>')
    with pytest.raises(ValueError, match=r"dump\.xml: a dump of MediaWiki; extract its text first"):
        read(tmp_path / "dump.xml")
    for name in ("a.csv", "a.tsv.gz"):
        (tmp_path / name).write_text("id,text")
        with pytest.raises(ValueError, match="a table is not read as text"):
            read(tmp_path / name)


def test_lines_that_end_with_cr_alone(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\r\rthree\r")
    assert read(tmp_path / "a.txt") == ["one", "two", END, "three", END]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r{"text": "b"}\r')
    assert read(tmp_path / "a.jsonl") == ["a", END, "b", END]
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\r{"text": }\r')
    with pytest.raises(ValueError, match=r"b\.jsonl:2: not (JSON|readable as JSON)"):
        read(tmp_path / "b.jsonl")
