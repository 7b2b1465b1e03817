"""Settings of generation in the files of a model folder: generation_config.json, or else config.json."""

import logging
import re
from collections.abc import Mapping, Set
from pathlib import Path

from flaxbert.files import JsonObject, read_json

_log = logging.getLogger(__name__)

LENGTHS = (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length"))
"""Names of the limits on the new tokens, and of those on a sequence with its prompt; one of each pair may be given."""

# Keys of a generation_config.json that change the tokens and are not built, with the values that change nothing.
_NOT_BUILT: Mapping[str, tuple[object, ...]] = {
    "assistant_early_exit": (None,),
    "begin_suppress_tokens": (None, []),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_decoder_ids": (None,),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "min_p": (None,),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None,),
    "prompt_lookup_num_tokens": (None,),
    "renormalize_logits": (None, False),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}

# Keys of transformers' that change no token, or that others read.
_WITHOUT_EFFECT = re.compile(
    r"_from_model_config|(assistant|cache|compile|num_assistant|output|return)_.*|bos_token_id|continuous_batching_config|"
    r"decoder_start_token_id|disable_compile|is_assistant|low_memory|max_cache_len|max_matching_ngram_size|"
    r"prefill_chunk_size|remove_invalid_values|speculation_type|target_lookbehind|transformers_version|use_cache|use_mtp"
)


def read_settings(folder: Path, names: Set[str], changes: Mapping[str, object]) -> JsonObject:
    """Return the settings of a folder with these names, replaced by `changes`; a warning names other keys.

    Raises:
        FileNotFoundError: the folder has neither file.
        ValueError: the file sets something that is not built, or cannot be read.
    """
    files = [folder / name for name in ("generation_config.json", "config.json")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: has no generation_config.json and no config.json")
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds no JSON object")
    for name, neutral in _NOT_BUILT.items():
        if name in values and values[name] not in neutral:
            raise ValueError(f"{file}: sets {name} to {values[name]!r:.60}, which is not built; delete that key")
    unknown = [key for key in values.keys() - names - _NOT_BUILT.keys() if not _WITHOUT_EFFECT.fullmatch(key)]
    if file.name == "generation_config.json" and unknown:
        _log.warning("%s: keys that no setting of generation has are not read: %.300s", file, sorted(unknown))
    found = {name: value for name, value in values.items() if name in names and value is not None}
    for new_tokens, length in LENGTHS:  # a length that is given, or counts new tokens, replaces the other one
        if changes.get(new_tokens) is not None or changes.get(length) is not None:
            found = {name: value for name, value in found.items() if name not in (new_tokens, length)}
        elif new_tokens in found:
            found.pop(length, None)
    merged = found | dict(changes)
    ignored: set[str] = set() if merged.get("do_sample") else {"temperature", "top_k", "top_p"}
    if merged.get("num_beams", 1) == 1:
        ignored |= {"length_penalty", "early_stopping"}
    return {name: value for name, value in merged.items() if name in changes or name not in ignored}
