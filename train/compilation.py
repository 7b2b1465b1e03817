"""JAX's persistent compilation cache, and the time spent on compiling."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jaxtyping import PyTree

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilation_cache(folder: Path | None) -> Iterator[None]:
    """Context with jax's compilation cache in `folder`; None changes nothing.

    A cache that is already set (JAX_COMPILATION_CACHE_DIR) stays in use.
    """
    if folder is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        yield
        return
    _set_cache(str(folder.absolute()))
    try:
        yield
    finally:
        _set_cache(None)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Context without a compilation cache.

    Needed for programs of devices that do not exist here: jax can store them, but not read them again.
    """
    before = jax.config.values["jax_compilation_cache_dir"]
    _set_cache(None)
    try:
        yield
    finally:
        _set_cache(before)


def _set_cache(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    reset_cache()  # jax reads the setting only once


@dataclasses.dataclass
class CompileTime:
    """Seconds that XLA has spent on compiling so far."""

    seconds: float = 0.0


@contextlib.contextmanager
def compile_time() -> Iterator[CompileTime]:
    """Yield an object whose `seconds` add up the time that XLA compiles, or reads programs from a cache."""
    total = CompileTime()

    def add(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT:
            total.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(add)
    try:
        yield total
    finally:
        jax.monitoring.unregister_event_duration_listener(add)


class Precompiled:
    """A jitted function of which `compile_for` compiles the program for given arguments without running it."""

    def __init__(self, function: jax.stages.Wrapped):
        """Take a function of `jax.jit` whose last changing argument is a batch: arrays by name."""
        self._function = function
        self._compiled: set[tuple[object, ...]] = set()

    def __call__(self, *arguments: PyTree) -> PyTree:
        """Call the function."""
        return self._function(*arguments)

    def compile_for(self, batch: Mapping[str, jax.Array], *arguments: PyTree) -> None:
        """Compile the program for `arguments`, among which only `batch` ever changes its shapes."""
        shapes = tuple((name, array.shape, array.dtype) for name, array in batch.items())
        if shapes not in self._compiled:
            self._compiled.add(shapes)
            self._function.lower(*arguments).compile()  # the call that follows finds the program
