"""Rows of data from files and from the `datasets` library, and the choice of rows to evaluate on."""

import dataclasses
import difflib
import functools
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flaxbert.files import require_downloaded
from flaxbert.text.messages import is_invisible, quote_names, raise_problems
from flaxbert.text.tables import TABLE_FORMATS, TableRow, read_table, table_format
from train.data.bad_rows import BadRow, BadRowList, ReadRows, bad_row_facts

DATASET_PREFIX = "datasets:"
"""Prefix of the name of a data set, to tell it from a file."""

_Row = TypeVar("_Row")


def reading_facts(sets: Mapping[str, ReadRows[_Row]]) -> dict[str, str | float | int]:
    """Return the columns that were read of each set, and the number of bad rows, for the first line of a run."""
    facts: dict[str, str | float | int] = {}
    columns = None
    for name, rows in sets.items():
        if rows.columns and rows.columns != columns:
            facts[f"{name} columns"] = " + ".join(f"{column!r} as {part}" for part, column in rows.columns.items())
            columns = rows.columns
    return facts | bad_row_facts({name: rows.bad.rows for name, rows in sets.items()})


@dataclasses.dataclass(frozen=True)
class SourceRows:
    """The rows of a file or data set, at least one, and a sentence for errors that says what is expected of them."""

    rows: Sequence[TableRow]
    expectation: str
    classes: Mapping[str, Sequence[str]]  # the names of classes, by id, in columns for which a data set declares them

    @property
    def columns(self) -> list[str]:
        """The names of all columns in the order in which they appear; rows of JSON may have different ones."""
        return list(dict.fromkeys(name for row in self.rows for name in row.cells))


def read_source(
    source: str | os.PathLike[str], *, split: str | None = None, header: bool = True, lists: bool = False
) -> SourceRows:
    """Read a file with one of the extensions of `TABLE_FORMATS`, or a split of a data set.

    A data set is `datasets:NAME[:CONFIG]`, its folder, or a name that is not a path.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    is_path = path.suffix.lower() in TABLE_FORMATS or path.exists() or path.is_absolute() or name.startswith((".", "~"))
    if is_dataset(name) or not is_path:
        found = dataset_rows(name, split, lists=lists)
        if not found.rows:
            raise ValueError(f"{name}: no rows. {found.expectation}")
        return found
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {_similar_files(path)}")
    extension = table_format(path)
    if extension is None:
        raise ValueError(
            f"{path}: ending {path.suffix!r} is none of {quote_names(TABLE_FORMATS)}; rename or convert the file"
        )
    reject_split(split, path)
    rows = list(read_table(path, name=name, header=header))
    expectation = f"Expected in {extension}: {TABLE_FORMATS[extension]}."
    if not rows:
        what = "no rows" if extension in (".json", ".jsonl") else "a header but no rows"
        raise ValueError(f"{name}: {what}. {expectation}")
    return SourceRows(rows, expectation, {})


def is_dataset(source: str) -> bool:
    """Return whether a source is "datasets:NAME" or a folder, not a file."""
    return source.startswith(DATASET_PREFIX) or Path(source).expanduser().is_dir()


def parse_rows(rows: Sequence[TableRow], parse: Callable[[TableRow], _Row], bad: BadRowList, remedy: str) -> list[_Row]:
    """Parse each row; those for which `parse` raises a ValueError are added to the bad ones."""
    parsed, problems = [], []
    for row in rows:
        try:
            parsed.append(parse(row))
        except ValueError as error:
            problems.append(BadRow(row.source, str(error)))
    bad.add(problems, remedy)
    return parsed


def is_blank(value: object) -> bool:
    """Return whether a cell holds nothing: null, or a text of blanks."""
    return value is None or (isinstance(value, str) and is_invisible(value))


def reject_split(split: str | None, file: Path) -> None:
    """Raise a ValueError if a split is given for a file."""
    if split is not None:
        raise ValueError(f"split={split!r} is for data sets; {file} is a file: name the split's own file")


def dataset_rows(name: str, split: str | None, *, lists: bool = False) -> SourceRows:
    """Read a split of a data set; class numbers become names. Remote code of data sets is never run."""
    import datasets

    name = name.removeprefix(DATASET_PREFIX)
    if (json_rows := _json_rows(name, split)) is not None:
        return SourceRows(json_rows, f"Expected: {TABLE_FORMATS['.jsonl']}.", {})
    data = _load_dataset(name, split)
    # Scalars, and lists of them: decoding an image beside the text costs time.
    list_items = {
        n: f.feature for n, f in data.features.items() if lists and isinstance(f, datasets.List | datasets.LargeList)
    }
    features = {**data.features, **list_items}
    features = {n: f for n, f in features.items() if isinstance(f, datasets.Value | datasets.ClassLabel)}
    classes = {n: dict(enumerate(f.names)) for n, f in features.items() if isinstance(f, datasets.ClassLabel)}
    # A class of -1 throughout means that the split is unlabelled (test sets on the hub).
    names = [n for n in features if n not in classes or n in list_items or set(data[n]) != {-1}]
    names += [n for n, f in data.features.items() if lists and isinstance(f, dict)]  # choices with their names
    rows = [
        dataclasses.replace(row, cells={n: _class_names(classes.get(n), value) for n, value in row.cells.items()})
        for row in _stored_rows(name, data.select_columns(names))
    ]
    declared = {n: list(own.values()) for n, own in classes.items()}
    return SourceRows(rows, "Expected: strings, and scalar labels.", declared)


def dataset_structures(name: str, split: str | None) -> list[TableRow]:
    """Read the rows of a split as they are, with nested lists and structures."""
    name = name.removeprefix(DATASET_PREFIX)
    json_rows = _json_rows(name, split)
    return _stored_rows(name, _load_dataset(name, split)) if json_rows is None else json_rows


def dataset_texts(name: str, split: str, column: str) -> Iterator[TableRow]:
    """Read a column of a split, a thousand rows at a time."""
    name = name.removeprefix(DATASET_PREFIX)
    if (json_rows := _json_rows(name, split)) is not None:
        yield from json_rows
        return
    data = _load_dataset(name, split)
    if column not in data.column_names:
        raise ValueError(f"{name}: no column {column!r}; found {quote_names(data.column_names)}: name another column")
    data = data.select_columns([column]).with_format("arrow")
    first = 0
    for table in data.iter(batch_size=1000):
        yield from arrow_rows(table.column(0), column, lambda i, first=first: f"{DATASET_PREFIX}{name}:{first + i}")
        first += len(table)


def arrow_rows(values: Any, column: str, source: Callable[[int], str]) -> Iterator[TableRow]:
    """Yield the cells of a column, an Arrow array; `source` is a function of the index."""
    try:
        cells: Sequence[object] = values.to_pylist()
    except UnicodeDecodeError:
        for index, value in enumerate(values):
            try:
                yield TableRow(source(index), {column: value.as_py()})
            except UnicodeDecodeError as error:
                yield TableRow(source(index), problem=f"{column!r}: not UTF-8 ({error})")
        return
    for index, value in enumerate(cells):
        yield TableRow(source(index), {column: value})


def split_by_group(
    rows: Sequence[_Row], groups: Sequence[Hashable], share: float, *, seed: int
) -> tuple[list[_Row], list[_Row]]:
    """Split rows into (training, validation), at least `share` of them; rows of one group stay together.

    The choice of groups depends only on the seed and on the order and sizes of the groups.
    """
    sizes = Counter(groups)  # in the order of the rows
    names = list(sizes)
    chosen, count = set(), 0
    for number in np.random.default_rng([seed, len(rows)]).permutation(len(names)):
        if count >= share * len(rows):
            break
        chosen.add(names[number])
        count += sizes[names[number]]
    if len(chosen) == len(names):
        raise ValueError(
            f"a share of {share} takes all of {len(rows)} rows, of {len(names)} article(s) or text(s); hold out less, "
            "or give a file to evaluate on"
        )
    training = [row for row, group in zip(rows, groups, strict=True) if group not in chosen]
    return training, [row for row, group in zip(rows, groups, strict=True) if group in chosen]


def _similar_files(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    files = sorted(entry.name for entry in folder.iterdir())
    shown = difflib.get_close_matches(path.name, files) or files[:10]
    return f"{folder} holds {quote_names(shown)}: give one of its files, or `{DATASET_PREFIX}NAME`"


def _class_names(names: Mapping[int, str] | None, value: Any) -> object:
    """Return a cell with the names of its classes; `names` is None in columns without classes."""
    if names is None:
        return value
    return list(map(names.get, value)) if isinstance(value, list) else names.get(value)


def _stored_rows(name: str, data: Any) -> list[TableRow]:
    """Return the rows of a loaded split; those with bytes that are not UTF-8 have a problem."""
    sources = (f"{DATASET_PREFIX}{name}:{i}" for i in range(len(data)))
    try:
        return list(map(TableRow, sources, data.to_list()))
    except UnicodeDecodeError:
        columns = {column: list(arrow_rows(data.data[column], column, str)) for column in data.column_names}
    rows = []
    for source, *cells in zip(sources, *columns.values(), strict=True):
        problem = next((cell.problem for cell in cells if cell.problem), None)
        values = {} if problem else {name: value for cell in cells for name, value in cell.cells.items()}
        rows.append(TableRow(source, values, problem))
    return rows


def _json_rows(name: str, split: str | None) -> list[TableRow] | None:
    """Read a split of a folder of JSON files, of which the library would take malformed rows for others.

    Return None for other data sets.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    path = Path(name).expanduser()
    if not path.is_dir() or (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return None
    try:
        builder = datasets.load_dataset_builder(str(path))
    except (OSError, ValueError, DatasetsError):
        return None  # loading says why
    data_files = builder.config.data_files or {}
    chosen = next(iter(data_files)) if split is None and len(data_files) == 1 else str(split)
    files = [Path(file) for file in data_files.get(chosen, ())]
    if builder.info.features or not files or any(file.suffix.lower() not in (".json", ".jsonl") for file in files):
        return None
    return [row for file in files for row in read_table(file, name=str(file))]


@functools.cache
def _check_file(file: Path, _size_and_time: tuple[int, int]) -> None:
    """Check a file of a data set for damage that the library takes for data; once, while it does not change.

    Raises:
        ValueError: rows of a .csv or .tsv are malformed, or the checksum of a page of a .parquet is wrong.
    """
    require_downloaded(file)
    if file.suffix.lower() in (".csv", ".tsv"):
        rows = list(read_table(file, name=str(file)))
        problems = [f"{row.source}: {row.problem}" for row in rows if row.problem is not None]
        raise_problems(problems, len(rows), "Correct these rows, or give this file instead of its folder to skip them.")
    elif file.suffix.lower() == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as table:
                for _ in table.iter_batches():
                    pass
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file}: damaged: {error}") from error


def _load_dataset(name: str, split: str | None) -> Any:  # datasets.Dataset, whose types are incomplete
    import datasets  # a second of import that files don't need
    from datasets.exceptions import DatasetsError

    path = Path(name).expanduser()
    stored = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    for file in () if stored else path.rglob("*.*"):  # none for the name of a data set
        if file.suffix.lower() in (*TABLE_FORMATS, ".parquet") and file.is_file():
            status = file.stat()
            _check_file(file, (status.st_size, status.st_mtime_ns))
    try:
        if stored:
            data = datasets.load_from_disk(str(path))
            if isinstance(data, datasets.Dataset):
                data = datasets.DatasetDict({str(data.split or "train"): data})
        else:
            repository, _, config = (str(path), "", "") if path.exists() else name.partition(":")
            data = datasets.load_dataset(repository, config or None, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        message = f"{name!r} is no file ({quote_names(TABLE_FORMATS)}) and no data set that can be loaded: {error}"
        raise (FileNotFoundError if isinstance(error, OSError) else ValueError)(message) from error
    if isinstance(data, datasets.DatasetDict):
        chosen = str(next(iter(data)) if split is None and len(data) == 1 else split)
        if chosen not in data:
            raise ValueError(f"{name}: split={split!r} is none of {quote_names(map(str, data))}; give one of them")
        data = data[chosen]
    return data
