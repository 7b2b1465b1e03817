"""Model folders: load with the class that config.json names, save with the tokenizer's files."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from flaxbert import weights
from flaxbert.families import ARCHITECTURES, architecture_of, family_of
from flaxbert.families.config_file import architecture_name, read_config
from flaxbert.models import Model, PreTrainedModel
from flaxbert.sharding import AxisRules, is_multihost
from flaxbert.tokenizer_files import copy_tokenizer_files
from flaxbert.weights.checkpoint_files import open_checkpoint

_log = logging.getLogger("flaxbert")


def save_pretrained(path: str | Path, model: PreTrainedModel, params: Mapping[str, Any], **arguments: Any) -> None:
    """Write a folder that `transformers` loads; other files in it stay.

    The tokenizer's files are copied from the folder that the model was loaded from, and for a base model (`BertModel`)
    those of sentence-transformers too, except files that the target has already.

    The arguments and errors are those of `flaxbert.weights.save`.
    """
    weights.save(path, model, params, **arguments)
    if is_multihost(params) and jax.process_index() > 0:
        return
    if model.origin is not None and model.origin.is_dir():
        copy_tokenizer_files(model.origin, Path(path), sentence_transformers=architecture_of(model).is_base_model)


def load_model(
    cls: type[Model],
    path: str | Path,
    *,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
    **attributes: Any,
) -> tuple[Model, dict[str, Any]]:
    """Load a checkpoint for a model class: return the model and its float32 parameters.

    Args:
        path: a folder with config.json and weights: safetensors, pytorch_model.bin (needs the extra `torch`),
            flax_model.msgpack, each in one file or several, or parameters saved by orbax, as training runs do;
            or the folder of a TensorFlow 1 checkpoint of google-research/bert (bert_config.json, index and data).
        strict: raise on any missing or unexpected weight (a pooler that the class does without is only named in
            a warning). With False the *head* may differ: parameters of this class's head that the file lacks are
            newly initialised from `key`, weights of another head are left out, and a warning of the "flaxbert"
            logger names both.
        ignore_mismatched_sizes: newly initialise parameters that have another shape in the file, with a warning.
        key: for new parameters; `jax.random.key(0)` where None.
        mesh, rules: placement of the parameters, each device reading its own part; one device without a mesh,
            `AxisRules()` without rules. The rules become the model's.
        **attributes: of the class: `dtype`, `scan`, `remat`, `attn_implementation`, `vocab_multiple`,
            `add_pooling_layer`; or `config` to replace the file's (another number of labels, for instance).

    Raises:
        FileNotFoundError, ValueError: one error that lists every missing, unexpected and mis-shaped name.
    """
    config = attributes.pop("config", None) or read_config(path, family_of(cls))
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    model = cls(config, **{"origin": folder, "rules": rules or AxisRules(), **attributes})
    params = weights.load(
        path,
        model,
        strict=strict,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        key=key,
        mesh=mesh,
        rules=rules,
    )
    return model, params


def from_pretrained(path: str | Path, **arguments: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a Hugging Face folder with the class that config.json names under "architectures".

    A base model (`BertModel`) has a pooler where the folder has one; those of sentence-transformers often have none.

    The arguments, results and errors are those of `PreTrainedModel.from_pretrained`.

    Raises:
        ValueError: config.json names no class of this library.
    """
    config_keys = read_config(path).unused
    name = architecture_name(config_keys)
    if name is None or name not in ARCHITECTURES:
        raise ValueError(
            f"{path}: config.json has architectures {config_keys.get('architectures')!r}; known: "
            f"{', '.join(ARCHITECTURES)}. Call the class's own from_pretrained to choose one yourself"
        )
    model_class = ARCHITECTURES[name]
    if architecture_of(model_class).is_base_model and "add_pooling_layer" not in arguments:
        arguments["add_pooling_layer"] = _has_pooler(Path(path), model_class)
    return model_class.from_pretrained(path, **arguments)


def _has_pooler(path: Path, model_class: type[PreTrainedModel]) -> bool:
    pooler = tuple(row.name for row in family_of(model_class).pooler)
    found = any(name.endswith(pooler) for name in open_checkpoint(path).tensors)
    if not found:
        _log.warning("%s: the checkpoint has no pooler; the model is loaded without one", path)
    return found
