"""The records of a data set of the `datasets` library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.data.messages import listed
from train.data.text_tables import ENDINGS, Record


def dataset_records(name: str, split: str | None, *, lists: bool = False) -> list[Record]:
    """The records of a split, lists among them where asked for; class numbers become names.

    Remote code of data sets is never run.
    """
    import datasets

    data = _load(name, split)
    # Scalars, and lists of them: decoding an image beside the text costs time.
    of_list = {
        n: f.feature for n, f in data.features.items() if lists and isinstance(f, datasets.List | datasets.LargeList)
    }
    kinds = {**data.features, **of_list}
    kinds = {n: f for n, f in kinds.items() if isinstance(f, datasets.Value | datasets.ClassLabel)}
    classes = {n: dict(enumerate(f.names)) for n, f in kinds.items() if isinstance(f, datasets.ClassLabel)}
    names = [n for n in kinds if n not in classes or n in of_list or set(data[n]) != {-1}]
    table = data.select_columns(names).to_list()
    for values in table:
        for n in classes.keys() & names:
            found = values[n]
            values[n] = list(map(classes[n].get, found)) if isinstance(found, list) else classes[n].get(found)
    return [(f"datasets:{name}:{i}", values) for i, values in enumerate(table)]


def dataset_structures(name: str, split: str | None) -> list[dict[str, Any]]:
    """The records of a split as they are, lists and structures within them too."""
    return _load(name, split).to_list()


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
