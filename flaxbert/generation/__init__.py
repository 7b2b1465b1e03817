"""Text generation: greedy search, sampling and beam search with a cache, in one compiled loop."""

from flaxbert.generation.arguments import GenerationArguments
from flaxbert.generation.decoding import GenerationOutput, generate, prepare_for_generation, stream
from flaxbert.generation.settings import GenerationSettings

__all__ = [
    "GenerationArguments",
    "GenerationOutput",
    "GenerationSettings",
    "generate",
    "prepare_for_generation",
    "stream",
]
