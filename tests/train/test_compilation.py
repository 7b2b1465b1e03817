"""Compiled programs are stored in the cache, and read from it."""

import jax
import numpy as np
import pytest

from train.compilation import compilation_cache, compile_time, without_compilation_cache


def compile_fixed_program():
    """Compile a fixed program; return the number of cache hits and the seconds."""
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


def test_programs_are_stored_in_the_folder_and_read_again(no_cache, tmp_path):
    folder = tmp_path / "run" / "compiled"
    with compilation_cache(folder):
        assert compile_fixed_program()[0] == 0
    (kept,) = folder.glob("*-cache")
    assert compile_fixed_program()[0] == 0  # no more
    with compilation_cache(folder):
        hits, seconds = compile_fixed_program()
    assert hits == 1 and seconds > 0
    with compilation_cache(None):
        assert compile_fixed_program()[0] == 0


def test_a_truncated_program_is_compiled_again(no_cache, tmp_path):
    with compilation_cache(tmp_path):
        compile_fixed_program()
    (kept,) = tmp_path.glob("*-cache")
    kept.write_bytes(kept.read_bytes()[:100])
    with compilation_cache(tmp_path), pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert compile_fixed_program()[0] == 0


def test_a_cache_that_is_already_set_stays_in_use(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    with compilation_cache(tmp_path / "run"):
        compile_fixed_program()
    assert list((tmp_path / "mine").glob("*-cache")) and not (tmp_path / "run").exists()


def test_without_compilation_cache(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    with without_compilation_cache():
        compile_fixed_program()
    assert not list(tmp_path.glob("*-cache"))
    compile_fixed_program()
    assert list(tmp_path.glob("*-cache"))
    with without_compilation_cache():
        assert compile_fixed_program()[0] == 0
    assert compile_fixed_program()[0] == 1
