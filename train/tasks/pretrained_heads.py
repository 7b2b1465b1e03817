"""The head of a pretrained model that has been trained already: whether it is kept, and the ids of its labels."""

import dataclasses
import shlex
from pathlib import Path

from flaxbert.families import ARCHITECTURES, HeadKind, architecture_name, architecture_of, read_config
from flaxbert.text.messages import quote_names
from flaxbert.weights.checkpoint import open_checkpoint
from train.config import Config
from train.tasks.task import Facts, config_folder

# Kinds whose heads have the same names in a checkpoint, so that one would be loaded as the other.
_SAME_TENSOR_NAMES = (HeadKind.SEQUENCE_CLASSIFICATION, HeadKind.TOKEN_CLASSIFICATION, HeadKind.MULTIPLE_CHOICE)


@dataclasses.dataclass(frozen=True)
class HeadChoice:
    """The labels of a head in the order of their ids, and where the head comes from."""

    labels: tuple[str, ...]
    new: bool = False  # newly initialised, whatever the checkpoint holds
    facts: Facts = dataclasses.field(default_factory=dict[str, str | float | int])


def choose_head(
    config: Config, kind: HeadKind, labels: tuple[str, ...], *, given: bool, regression: bool = False
) -> HeadChoice:
    """Decide whether the head of the pretrained model is kept, and return the labels by id.

    A head that was trained for the same set of labels is kept with its ids. Without a head of this kind, or where
    `model.new_head` asks for it, the head is new and the order of `labels` is that of the ids. A run that is resumed
    keeps its ids.

    Args:
        config: of the run.
        kind: of the head to train.
        labels: of the data; multiple choice has none.
        given: True if the settings give the labels, in this order.
        regression: the head has one output without a name.

    Raises:
        ValueError: the model has a head for other labels, or the settings give them in another order.
    """
    pretrained, own = config.model.pretrained, config.run.folder / "config.json"
    if pretrained is None:
        return HeadChoice(labels)
    found, stored = _head_kind(pretrained, kind), read_config(config_folder(pretrained)).id2label
    new = config.model.new_head or (found is not kind and found in _SAME_TENSOR_NAMES)
    if own.is_file() and {*(resumed := read_config(own).id2label)} == {*labels}:
        return HeadChoice(tuple(resumed), new, {"head": "of this run"})
    if new or found is not kind:
        return HeadChoice(labels, new, {"head": "new"})
    facts = Facts(head="of the pretrained model")
    if kind is HeadKind.MULTIPLE_CHOICE or regression and len(stored) == 1:
        return HeadChoice(labels, facts=facts)
    if stored == _unnamed(len(labels)) and not regression:
        facts["head"] = f"of the pretrained model, whose labels have no names: {quote_names(labels)}"
        return HeadChoice(labels, facts=facts)
    if not regression and len(stored) == len(labels) and labels == _unnamed(len(labels)):
        facts["head"] = f"of the pretrained model, whose labels in their order name the data's: {quote_names(stored)}"
    elif {*stored} != {*labels}:
        has = f"the head of {pretrained} has the labels {quote_names(stored)}, the data have {quote_names(labels)}"
        if regression:
            has = f"the head of {pretrained} has {len(stored)} labels, a regression has one output"
        part = {*labels} < {*stored} and not regression
        keep = f", or --task.labels {shlex.join(stored)}, to keep the model's head" if part else ""
        raise ValueError(f"{has}: give --model.new-head to train a new head{keep}")
    if given and labels != stored:
        raise ValueError(
            f"task.labels is {quote_names(labels)}, but the head of {pretrained} has {quote_names(stored)}, in another "
            "order; leave --task.labels out to keep the model's order, or give --model.new-head to train a new head"
        )
    return HeadChoice(stored, facts=facts)


def _unnamed(count: int) -> tuple[str, ...]:
    """Return the names of labels without names, as transformers gives them; of vectors of 0 and 1 likewise."""
    return tuple(f"LABEL_{i}" for i in range(count))


def _head_kind(path: Path, kind: HeadKind) -> HeadKind | None:
    """Return the kind of the head that config.json names; without a name `kind`, if the checkpoint has a classifier."""
    checkpoint = open_checkpoint(path)
    name = architecture_name(read_config(checkpoint.config_folder).unused)
    if name is not None and name in ARCHITECTURES:
        return architecture_of(ARCHITECTURES[name]).head
    return kind if any(tensor.startswith("classifier.") for tensor in checkpoint.tensors) else None
