"""Plain text as documents: files, folders of files, or the documentation that ships inside every CPython."""

import ast
import collections
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PYDOC = "pydoc:"  # the source that needs no file


def read_documents(source: str) -> list[str]:
    """Documents of a source, in a fixed order.

    Args:
        source: a text file (a blank line ends a document), a folder (every .txt below it, by name), or "pydoc:" for
            Python's own language reference topics and the docstrings of its standard library.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no text in it, or a file that is not UTF-8 (names file and line).
    """
    documents = list(_python_documentation()) if source == PYDOC else list(_file_documents(Path(source)))
    if not documents:
        raise ValueError(f"{source}: holds no text")
    return documents


def _file_documents(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.txt") if file.is_file())
        if not files:
            raise FileNotFoundError(f"{path}: the folder holds no .txt file")
    elif path.is_file():
        files = [path]
    else:
        raise FileNotFoundError(f"{path}: no such file or folder; give a text file, a folder of them, or {PYDOC!r}")
    for file in files:
        yield from _paragraphs_joined(_decoded(file))


def _decoded(file: Path) -> str:
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}:{line}: byte {data[error.start]:#04x} is not UTF-8 text; convert the file") from None
    if "\0" in text:
        raise ValueError(f"{file}:{text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL byte; not a text file")
    return text.replace("\r\n", "\n")


def _paragraphs_joined(text: str) -> Iterator[str]:
    """A document is a run of lines without a blank one among them."""
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            lines.append(line.strip())
        elif lines:
            yield "\n".join(lines)
            lines = []


def _python_documentation() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        # Tests and installed packages differ from one Python to the next; the library itself hardly.
        if {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"} & set(file.parts):
            continue
        yield from _docstrings(file)


def _docstrings(file: Path) -> Iterator[str]:
    """The file's docstrings by parsing, never by importing; files of other encodings or syntax are left out."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 80:  # shorter ones hold no sentence worth a context
                yield text


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes breadth first, as `ast.walk`; not those of expressions, which are most and define nothing."""
    nodes = collections.deque([tree])
    while nodes:
        node = nodes.popleft()
        yield node
        nodes.extend(
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)
        )
