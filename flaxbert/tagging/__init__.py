"""Tags of words and pieces: schemes and the entities they mean, windows of long texts, entities of probabilities."""

from flaxbert.tagging.aggregation import Aggregation, Entity, aggregate
from flaxbert.tagging.schemes import Scheme, Span, detect, encode, parse, repaired, spans, strict_spans
from flaxbert.tagging.windows import owners, windows

__all__ = [
    "Aggregation",
    "Entity",
    "Scheme",
    "Span",
    "aggregate",
    "detect",
    "encode",
    "owners",
    "parse",
    "repaired",
    "spans",
    "strict_spans",
    "windows",
]
