"""BERT in JAX/Flax: every head, its losses, sharded training, and Hugging Face weights both ways.

`__init__.pyi` lists the public names. Each is imported when it is first used, because the help of the command and of
its subcommands would wait two seconds for jax.
"""

import difflib

import lazy_loader

_import_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_RENAMED = {"Attention": "AttentionImplementation"}


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        raise AttributeError(f"flaxbert.{name} is now called flaxbert.{_RENAMED[name]}")
    if name not in __all__ and (near := difflib.get_close_matches(name, __all__, cutoff=0.85)):
        raise AttributeError(f"module 'flaxbert' has no attribute {name!r}; near names: {', '.join(near)}")
    return _import_name(name)
