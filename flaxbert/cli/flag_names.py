"""Errors of the library in the words of the command line: flags and tasks in place of arguments and classes."""

import dataclasses
import re
from typing import TYPE_CHECKING

from flaxbert.cli.generation_flags import SETTINGS_FLAGS
from flaxbert.cli.prediction_tasks import TASKS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_OTHER_NAMES = {"keep": "keep_layers", "vocab_size": "resize_vocab"}  # arguments that differ from their flags


def name_flags(message: str, subcommand: "DataclassInstance") -> str:
    """Name the flags in place of arguments: those that were given, and all settings of generation.

    A name of one word may be plain English: it is replaced only at the start or after a path, before "is".
    """
    fields = dataclasses.fields(subcommand)
    given = {field.name for field in fields if getattr(subcommand, field.name) != field.default}
    flags = {name: name for name in given} | {name: flag for name, flag in _OTHER_NAMES.items() if flag in given}
    task = getattr(subcommand, "task", None)
    if task is not None:
        message = message.replace(TASKS[task].pipeline.__name__, task)
    if task == "generate":
        flags |= {name: name for name in SETTINGS_FLAGS}
    for name, flag in flags.items():
        flag = f"--{flag.replace('_', '-')}"
        if "_" not in name:
            message = re.sub(rf"(^|: ){name}(?= is )", rf"\1{flag}", message)
            continue
        message = re.sub(rf"\b{name}=False\b", f"no {flag}", message)
        message = re.sub(rf"(?<![\w'\"/.-]){name}(=True)?(?![\w'\"=])", flag, message)
    return message
