"""Text generation: greedy search, sampling and beam search with a cache, in one compiled loop."""

from flaxbert.generation.settings import GenerationSettings

__all__ = ["GenerationSettings"]
