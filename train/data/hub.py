"""The records of a data set of the `datasets` library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.data.messages import listed
from train.data.text_tables import ENDINGS, Record


def dataset_records(name: str, split: str | None) -> list[Record]:
    """The records of a split; class numbers become names. Remote code of data sets is never run."""
    import datasets

    data = _load(name, split)
    # Scalars only: decoding an image beside the text costs time.
    scalars = {n: f for n, f in data.features.items() if isinstance(f, datasets.Value | datasets.ClassLabel)}
    classes = {n: dict(enumerate(f.names)) for n, f in scalars.items() if isinstance(f, datasets.ClassLabel)}
    names = [n for n in scalars if n not in classes or set(data[n]) != {-1}]
    table = data.select_columns(names).to_list()
    for values in table:
        values.update({n: classes[n].get(values[n]) for n in names if n in classes})
    return [(f"datasets:{name}:{i}", values) for i, values in enumerate(table)]


def dataset_lists(name: str, split: str | None) -> list[Record]:
    """The records of a split, of its columns that hold a list of scalars each; class numbers become names."""
    import datasets

    data = _load(name, split)
    kinds = {n: f.feature for n, f in data.features.items() if isinstance(f, datasets.List | datasets.LargeList)}
    names = [n for n, kind in kinds.items() if isinstance(kind, datasets.Value | datasets.ClassLabel)]
    table = data.select_columns(names).to_list()
    for values in table:
        for n in names:
            if isinstance(kinds[n], datasets.ClassLabel):
                values[n] = [dict(enumerate(kinds[n].names)).get(value) for value in values[n] or []]
    return [(f"datasets:{name}:{i}", values) for i, values in enumerate(table)]


def dataset_texts(name: str, split: str, column: str) -> Iterator[str | None]:
    """The texts in a column of a split, read piece by piece.

    Raises:
        FileNotFoundError, ValueError: no such data set, split or column, or one that holds no strings.
    """
    data = _load(name, split)
    if column not in data.column_names:
        raise ValueError(f"{name}: no column {column!r}; found {listed(data.column_names)}: name another column")
    for batch in data.select_columns([column]).iter(batch_size=1000):
        for value in batch[column]:
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name}: {column!r} is {value!r:.40}, expected strings")
            yield value


def _load(name: str, split: str | None) -> Any:
    import datasets  # a second of import that files don't need
    from datasets.exceptions import DatasetsError

    path = Path(name).expanduser()
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            data = datasets.load_from_disk(str(path))
            if isinstance(data, datasets.Dataset):
                data = datasets.DatasetDict({str(data.split or "train"): data})
        else:
            repository, _, config = (str(path), "", "") if path.exists() else name.partition(":")
            data = datasets.load_dataset(repository, config or None, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        message = f"{name!r} is no file ({listed(ENDINGS)}) and no data set that can be loaded: {error}"
        raise (FileNotFoundError if isinstance(error, OSError) else ValueError)(message) from error
    if isinstance(data, datasets.DatasetDict):
        chosen = str(next(iter(data)) if split is None and len(data) == 1 else split)
        if chosen not in data:
            raise ValueError(f"{name}: split={split!r} is none of {listed(map(str, data))}; give one of them")
        data = data[chosen]
    return data
