"""The model class that takes the tensors of a checkpoint: named by its config, given by the user, or inferred."""

import dataclasses
import logging
from pathlib import Path
from typing import cast

from flaxbert.config import BertConfig
from flaxbert.families import (
    ARCHITECTURES,
    Family,
    architecture_name,
    architecture_of,
    family_of_config_class,
    read_config,
)
from flaxbert.models import BertModel, PreTrainedModel
from flaxbert.weights.checkpoint import Checkpoint, open_checkpoint
from flaxbert.weights.load import is_encoder_decoder
from flaxbert.weights.match import MatchedTensors, has_pooler, infer_architecture, match, with_label_count
from flaxbert.weights.sentence_transformers import MODULES_FILE

_log = logging.getLogger("flaxbert")


@dataclasses.dataclass(frozen=True)
class ModelCheckpoint:
    """A checkpoint of one of the library's families with its configuration; no tensor has been read."""

    checkpoint: Checkpoint
    config: BertConfig

    @classmethod
    def open(cls, path: Path) -> "ModelCheckpoint":
        """Read tensor names and config.

        Raises:
            FileNotFoundError, ValueError: a file is missing or damaged, or of a family without a class here.
        """
        checkpoint = open_checkpoint(path)
        if is_encoder_decoder(checkpoint.config_folder):
            raise ValueError(
                f"{path}: an encoder-decoder, two models in one folder, where a single model is needed. `flaxbert "
                "predict generate` runs it; in Python, flaxbert.from_pretrained reads it"
            )
        return cls(checkpoint, read_config(checkpoint.config_folder))

    @property
    def family(self) -> Family:
        """The family of the configuration."""
        return family_of_config_class(type(self.config))

    @property
    def class_name(self) -> str:
        """The class that config.json names, or else the one inferred from tensor names."""
        return self._class_in_config or infer_architecture(self.family, self.checkpoint.tensors).name

    @property
    def _class_in_config(self) -> str | None:
        name = architecture_name(self.config.unused)
        return name if name in self._class_names else None

    @property
    def _class_names(self) -> tuple[str, ...]:
        return tuple(architecture.name for architecture in self.family.architectures)

    def model(self, class_name: str, *, count_labels: bool = True) -> PreTrainedModel:
        """Build a model of a class with this config; a base model has a pooler where the checkpoint has one.

        With `count_labels`, the number of labels is the classifier's where the config names no class: Google's config
        does not state it.
        """
        config, tensors = self.config, self.checkpoint.tensors
        if count_labels and self._class_in_config is None:
            config = with_label_count(self.checkpoint, config)
        model_class = ARCHITECTURES[class_name]
        if architecture_of(model_class).is_base_model:
            with_pooler = has_pooler(self.family, tensors)
            return cast(type[BertModel], model_class)(config, add_pooling_layer=with_pooler)
        return model_class(config)

    def match(self, class_name: str | None = None) -> tuple[PreTrainedModel, MatchedTensors]:
        """Return the model that takes the tensors, and the tensors.

        Of a given class, missing tensors of the head are initialised and tensors of another head are left out, both
        with a warning. The class that config.json names, or else the one inferred from the names of the tensors, must
        take every tensor.

        Raises:
            ValueError: lists the differences; a class that is not known.
        """
        if class_name is not None:
            if class_name not in self._class_names:
                raise ValueError(
                    f"head is {class_name!r}; allowed for {self.family.model_type!r}: {', '.join(self._class_names)}"
                )
            model = self.model(class_name)
            return model, match(self.checkpoint, model, strict=False)
        first_error = None
        named, inferred = self._class_in_config, infer_architecture(self.family, self.checkpoint.tensors).name
        for name, leave_out_heads in self._candidates(named, inferred):
            model = self.model(name)
            try:
                matched = match(self.checkpoint, model, leave_out_heads=leave_out_heads)
            except ValueError as error:
                first_error = first_error or error
                continue
            if self.config.unused.get("architectures") and name != named:
                given = self.config.unused["architectures"]
                _log.warning("%s: names %s, but its tensors are those of %s", self.checkpoint.file, given, name)
            return model, matched
        raise ValueError(
            f"{first_error}\nGive a class with --head CLASS (in Python head=): tensors of other heads are left out "
            "and missing ones initialised"
        ) from None

    def _candidates(self, named: str | None, inferred: str) -> list[tuple[str, bool]]:
        """Return classes to try, and whether to leave out weights of other heads: first those that take all tensors."""
        if named is None:
            return [(inferred, False)]
        candidates = [(named, False), (inferred, False), (named, True)]
        is_sentence_model = (self.checkpoint.model_folder / MODULES_FILE).is_file()
        if is_sentence_model and named == self.family.base_model.name:  # sentence-transformers needs no other class
            return [(named, True)]
        return candidates
