"""A checkpoint with its config, and the class that its tensors are of."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from flaxbert import config_json
from flaxbert.base import PreTrainedModel
from flaxbert.config import BertConfig
from flaxbert.encoder import BertModel
from flaxbert.heads import ARCHITECTURES
from flaxbert.weights import names
from flaxbert.weights.checkpoint_files import Checkpoint, open_checkpoint
from flaxbert.weights.load import Fitted, fit


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What lies at a path; of the tensors only names, types and shapes have been read."""

    source: Checkpoint
    config: BertConfig

    @classmethod
    def open(cls, path: Path) -> "LoadedModel":
        """Reads names and config.

        Raises:
            FileNotFoundError, ValueError: what is missing or wrong, and in which file.
        """
        found = open_checkpoint(path)
        return cls(found, BertConfig.from_pretrained(found.config_folder))

    @property
    def named(self) -> str | None:
        """The class that config.json names, where it is one of this library."""
        name = config_json.architecture(self.config.unused)
        return name if name in ARCHITECTURES else None

    def model(self, architecture: str) -> PreTrainedModel:
        """The class with this checkpoint's config; a base model without a pooler where the checkpoint has none."""
        config, tensors = self.config, self.source.tensors
        if self.named is None and "classifier.weight" in tensors and tensors["classifier.weight"].shape:
            labels = tensors["classifier.weight"].shape[0]  # Google's config does not say
            if 0 < labels != config.num_labels:
                config = config.replace(num_labels=labels)
        if architecture == "BertModel":
            return BertModel(config, add_pooling_layer=any("pooler." in name for name in tensors))
        return ARCHITECTURES[architecture](config)

    def fit(self, head: str | None = None) -> tuple[PreTrainedModel, Fitted]:
        """The model that takes the tensors, and which.

        Args:
            head: a class: what the checkpoint lacks of its head is then to be drawn, and another head left out, both
                with a warning. Without it the class takes every tensor: the one that config.json names, or else the
                one that has tensors of these names.

        Raises:
            ValueError: lists what does not fit; a class that is not known.
        """
        if head is not None:
            if head not in ARCHITECTURES:
                raise ValueError(f"head is {head!r}; allowed: {', '.join(ARCHITECTURES)}")
            model = self.model(head)
            return model, fit(self.source, model, strict=False)
        told = None
        for name in dict.fromkeys([self.named, architecture_of(self.source.tensors)]):
            if name is not None:
                model = self.model(name)
                try:
                    return model, fit(self.source, model)
                except ValueError as error:
                    told = told or error
        raise ValueError(f"{told}\nChoose a class (head) that leaves out, or draws afresh, what differs") from None


def architecture_of(tensors: Iterable[str]) -> str:
    """The class that has tensors of these names.

    A classifier with a pooler is taken for one of sequences: one of choices has the same names.
    """
    found = {names.canonical(name, bare=True) for name in tensors}
    following = "cls.seq_relationship.weight" in found
    if any(name.startswith("cls.predictions") for name in found):
        return "BertForPreTraining" if following else "BertForMaskedLM"
    if following:
        return "BertForNextSentencePrediction"
    if "qa_outputs.weight" in found:
        return "BertForQuestionAnswering"
    if "classifier.weight" in found:
        pooled = "bert.pooler.dense.weight" in found
        return "BertForSequenceClassification" if pooled else "BertForTokenClassification"
    return "BertModel"
