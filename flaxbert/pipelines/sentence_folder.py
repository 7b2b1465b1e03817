"""What a folder of sentence-transformers says about how its model's vectors become a sentence's."""

import dataclasses
import enum
from pathlib import Path
from typing import Any

from flaxbert.files import path_inside, read_json


class Pooling(enum.Enum):
    """How the vectors of a text's tokens become one, by sentence-transformers' names."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"


@dataclasses.dataclass(frozen=True)
class SentenceSettings:
    """Pooling, whether vectors are brought to length 1, how many tokens are read, and what stands before every text.

    The defaults are those of a folder that says nothing, as in sentence-transformers.
    """

    pooling: Pooling = Pooling.MEAN
    normalize: bool = False
    max_length: int | None = None
    prompt: str = ""


# Older folders have a switch for each way of pooling, newer ones the name.
_SWITCHES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read(folder: Path) -> SentenceSettings:
    """Reads modules.json and the files that it names; defaults where there is none.

    Raises:
        ValueError: a module other than a transformer, pooling and normalisation (its weights would be left out); a
            pooling that is none of ours; or a file that is not what it should be.
    """
    if not (folder / "modules.json").is_file():
        return SentenceSettings()
    pooling, normalize, prompt = Pooling.MEAN, False, _prompt(folder)
    for kind, path in _modules(folder):
        if kind == "Pooling":
            pooling = _pooling(path_inside(folder, path) / "config.json", prompt)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ValueError(
                f"{folder / 'modules.json'}: has a module {kind!r}, which is not supported; known: Transformer, "
                "Pooling, Normalize"
            )
    return SentenceSettings(pooling, normalize, _max_length(folder), prompt)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """The last name of each module's type, and its folder."""
    file = path_inside(folder, "modules.json")
    modules = read_json(file)
    found = (
        [(m.get("type"), m.get("path")) for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []
    )
    named = [(kind.rpartition(".")[2], path) for kind, path in found if isinstance(kind, str) and isinstance(path, str)]
    if not named or len(named) < len(modules):
        raise ValueError(f"{file}: expected a list of modules, each with its type and path")
    return named


def _pooling(file: Path, prompt: str) -> Pooling:
    values = _object(file)
    named = values.get("pooling_mode", [name for switch, name in _SWITCHES.items() if values.get(switch) is True])
    names = [named] if isinstance(named, str) else named
    known = [pooling.value for pooling in Pooling]
    if not isinstance(names, list) or len(names) != 1 or names[0] not in known:
        raise ValueError(f"{file}: pools by {names!r}; known, one of them: {', '.join(known)}")
    if prompt and values.get("include_prompt") is False:
        raise ValueError(f"{file}: leaves the prompt out of the mean (include_prompt), which is not supported")
    return Pooling(names[0])


def _max_length(folder: Path) -> int | None:
    """Of the transformer's own file, or of its tokenizer's, where newer folders keep it."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        file = path_inside(folder, name)
        value = _object(file).get(key) if file.is_file() else None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _prompt(folder: Path) -> str:
    """What stands before every text unless another prompt is asked for."""
    file = path_inside(folder, "config_sentence_transformers.json")
    values = _object(file) if file.is_file() else {}
    name, prompts = values.get("default_prompt_name"), values.get("prompts")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ValueError(f"{file}: the default prompt {name!r:.60} is none of its prompts")
    return prompts[name]


def _object(file: Path) -> dict[str, Any]:
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds a JSON {type(values).__name__}, expected an object")
    return values
