"""Flags of `flaxbert predict generate`: the settings of generation, under Hugging Face's names."""

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationFlags:
    """Settings of generation; those that are not given are the folder's (generation_config.json)."""

    max_new_tokens: int | None = None
    """generate: largest number of new tokens; by default 20."""
    min_new_tokens: int | None = None
    """generate: smallest number of new tokens."""
    num_beams: int | None = None
    """generate: beams of a beam search; by default the most probable token is taken at each step."""
    num_return_sequences: int | None = None
    """generate: continuations of each text: samples, or at most as many as there are beams."""
    do_sample: bool = False
    """generate: draw the tokens at random."""
    temperature: float | None = None
    """generate, with --do-sample: the scores are divided by it; below 1 the text is more predictable."""
    top_p: float | None = None
    """generate, with --do-sample: draw among the fewest tokens that have this probability together."""
    length_penalty: float | None = None
    """generate, with beams: the score is the log probability / length ** penalty; by default 1."""
    early_stopping: Literal["true", "false", "never"] | None = None
    """generate, with beams: stop at as many texts as beams (true), at none that is likely to be better, or possibly."""
    repetition_penalty: float | None = None
    """generate: factor against tokens that occurred; above 1 they are less probable."""
    no_repeat_ngram_size: int | None = None
    """generate: no sequence of this many tokens occurs twice."""
    seed: int | None = None
    """generate, with --do-sample: seed of the samples; by default 0."""
    stream: bool = False
    """generate: print each text while it is generated."""


SETTINGS_FLAGS = ("top_k", *(f.name for f in dataclasses.fields(GenerationFlags) if f.name not in ("seed", "stream")))
"""The flags that are settings of generation."""


def settings_options(flags: Mapping[str, object]) -> dict[str, object]:
    """Return options of the pipeline: flags that are settings of generation become one option, "settings"."""
    settings = {name: value for name, value in flags.items() if name in SETTINGS_FLAGS}
    if "early_stopping" in settings:
        settings["early_stopping"] = {"true": True, "false": False}.get(str(settings["early_stopping"]), "never")
    return {name: value for name, value in flags.items() if name not in settings} | {"settings": settings}
