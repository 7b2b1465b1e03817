"""Programs are kept where they should be, and taken from there."""

import jax
import numpy as np
import pytest

from train.compilation import compilation_cache, compile_time, without_compilation_cache


def compiled_anew():
    """Compiles a program that is always the same; how often a cache had it, and the seconds."""
    hits = 0

    def count(event, **_):
        nonlocal hits
        hits += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_listener(count)
    with compile_time() as compiling:
        result = jax.jit(lambda x: x @ x + 3)(np.eye(3, dtype=np.float32))
    jax.monitoring.unregister_event_listener(count)
    np.testing.assert_array_equal(result, np.eye(3) + 3)
    return hits, compiling.seconds


def test_programs_are_kept_in_the_folder_and_found_again(no_cache, tmp_path):
    folder = tmp_path / "run" / "compiled"
    with compilation_cache(folder):
        assert compiled_anew()[0] == 0
    (kept,) = folder.glob("*-cache")
    assert compiled_anew()[0] == 0  # no more
    with compilation_cache(folder):
        hits, seconds = compiled_anew()
    assert hits == 1 and seconds > 0
    with compilation_cache(None):
        assert compiled_anew()[0] == 0


def test_a_program_that_was_cut_off_is_compiled_again(no_cache, tmp_path):
    with compilation_cache(tmp_path):
        compiled_anew()
    (kept,) = tmp_path.glob("*-cache")
    kept.write_bytes(kept.read_bytes()[:100])
    with compilation_cache(tmp_path), pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert compiled_anew()[0] == 0


def test_a_cache_that_is_set_already_stays(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    with compilation_cache(tmp_path / "run"):
        compiled_anew()
    assert list((tmp_path / "mine").glob("*-cache")) and not (tmp_path / "run").exists()


def test_without_compilation_cache(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    with without_compilation_cache():
        compiled_anew()
    assert not list(tmp_path.glob("*-cache"))
    compiled_anew()
    assert list(tmp_path.glob("*-cache"))
    with without_compilation_cache():
        assert compiled_anew()[0] == 0
    assert compiled_anew()[0] == 1
