"""Compiled programs: kept for the next start of a run, and what compiling them took."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilation_cache(folder: Path | None) -> Iterator[None]:
    """While it lasts, jax keeps compiled programs in a folder and takes them from there.

    A cache that is set already (JAX_COMPILATION_CACHE_DIR) is left in place; a folder of None changes nothing either.
    """
    if folder is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        yield
        return
    _use(str(folder.absolute()))
    try:
        yield
    finally:
        _use(None)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """While it lasts, jax neither keeps compiled programs nor takes them from where they are kept.

    For devices that are not there: their programs can be kept, but not read again.
    """
    before = jax.config.values["jax_compilation_cache_dir"]
    _use(None)
    try:
        yield
    finally:
        _use(before)


def _use(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    reset_cache()  # jax looks at the setting only once


@contextlib.contextmanager
def compile_time() -> Iterator[SimpleNamespace]:
    """Adds up, in `seconds`, the time that XLA takes to compile, or to take programs from a cache."""
    found = SimpleNamespace(seconds=0.0)

    def add(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT:
            found.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(add)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(add)
