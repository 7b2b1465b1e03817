"""The documentation that ships inside every CPython: text for those who have none at hand."""

import ast
import collections
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def python_documentation() -> Iterator[str]:
    """The language reference's topics and the docstrings of the standard library, in a fixed order."""
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
