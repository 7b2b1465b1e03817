"""Config files: Python files that define a `config`. Mistakes in them are told by file and line."""

import dataclasses
import difflib
import importlib.util
import inspect
import re
import sys
import traceback
import typing
from pathlib import Path
from typing import Any

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from train.config import RENAMED_SETTINGS, Config

# Modules, and names in them, that config files imported, by their former names.
_RENAMED_IMPORTS = {
    "train.data.pretraining.stages": "train.data.pretraining.datasets",
    "train.data.pretraining.batches": "train.data.pretraining.datasets",
    "train.data.table": "train.data.labelled_texts",
    "train.data.tagged": "train.data.tagged_sentences",
    "train.tasks.answer_sets.Rule": "train.tasks.answer_sets.MatchingRule",
    "train.tasks.pretraining.Segments": "train.data.pretraining.datasets.Segments",
    "train.tasks.model_setup": "train.tasks.task",
    "train.tasks.next_sentence": "train.tasks.sequence_classification",
    "train.tasks.start": "train.tasks.task, and its function minilm is minilm_folder",
    "train.optim.adafactor": "train.optim.algorithms",
    "train.optim.adam": "train.optim.algorithms",
    "train.optim.lamb": "train.optim.algorithms",
}
_RENAMED_MEMBERS = {"PALLAS": "FUSED, a member of AttentionImplementation"}  # of enums


def load_config(file: Path) -> Config:
    """Return the `config` that a Python file defines.

    Raises:
        FileNotFoundError: there is no such file; the message lists the other files of its folder.
        ValueError: the file cannot be run, defines no `config` of the right type, uses the former name of a setting,
            module or class, or gives a class a setting that it does not have, or a value of the wrong type.
    """
    if not file.is_file():
        near = sorted(str(path) for path in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise FileNotFoundError(f"{file}: no such config" + (f"; there are {', '.join(near)}" if near else ""))
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == spec.origin]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{file}, line {line}" if line else f"{file}"
        raise ValueError(f"{place}: {_sentence(error)}") from error
    config = vars(module).get("config")
    if not isinstance(config, Config):
        found = f"found {type(config).__name__}" if "config" in vars(module) else "it defines none"
        raise ValueError(f"{file}: must define `config`, a train.config.Config; {found}")
    if problems := _wrong_types(config):
        raise ValueError(f"{file}: {'; '.join(problems)}")
    return config


def _sentence(error: Exception) -> str:
    """Return what went wrong while a config file ran, in one line."""
    if isinstance(error, ImportError):
        missing = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
        former = f"{missing[2]}.{missing[1]}" if missing else error.name
        if former in _RENAMED_IMPORTS:
            return f"{former} is now {_RENAMED_IMPORTS[former]}"
    if isinstance(error, AttributeError) and (former := error.name or str(error)) in _RENAMED_MEMBERS:
        return f"{former} is now {_RENAMED_MEMBERS[former]}"
    if isinstance(error, TypeError) and (mistake := _wrong_settings(str(error))) is not None:
        return mistake
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _wrong_types(settings: Any) -> list[str]:
    """Return a sentence for each field, here or in the settings inside, whose value is not of its type.

    A list may stand for a tuple, and a str for a path.
    """
    owner, problems = type(settings), []
    hints = typing.get_type_hints(owner)
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if not isinstance(hint, typing.TypeVar) and not _is_of(value, hint):
            wanted = inspect.formatannotation(hint)
            problems.append(f"{owner.__name__}.{field.name} is {value!r:.80}; its type is {wanted}")
        elif dataclasses.is_dataclass(value) and type(value).__module__.startswith("train."):
            problems += _wrong_types(value)
    return problems


def _is_of(value: object, hint: Any) -> bool:
    converted = {list: tuple, str: Path}.get(type(value))
    for candidate in (value, *([] if converted is None else [converted(value)])):
        try:
            check_type(candidate, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            continue
        return True
    return False


def _wrong_settings(message: str) -> str | None:
    """Turn Python's message about the arguments of a class of settings into one for users; None for other messages."""
    found = re.match(r"(\w+)\.__init__\(\) (?:got an unexpected keyword argument '(\w+)'|(.*))", message)
    if found is None:
        return None
    owner, name, other = found.groups()
    if other:
        return f"{owner}: {other}"
    renamed = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in RENAMED_SETTINGS.items()}
    if name in renamed:
        return f"{name} of {owner} is now called {renamed[name]}"
    # Not only in the config file, which may replace settings of an imported config.
    classes = (vars(module).get(owner) for key, module in sys.modules.items() if key.startswith(("train", "flaxbert")))
    fields = next(([field.name for field in dataclasses.fields(c)] for c in classes if dataclasses.is_dataclass(c)), [])
    near = difflib.get_close_matches(name, fields)
    return f"{owner} has no setting {name!r}; {'similar ones' if near else 'it has'}: {', '.join(near or fields)}"
