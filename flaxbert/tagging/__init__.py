"""Tags of words and pieces: schemes and the entities they mean, entities of probabilities."""

from flaxbert.tagging.aggregation import Aggregation, Entity, aggregate
from flaxbert.tagging.schemes import Scheme, Span, detect, encode, parse, repaired, spans, strict_spans

__all__ = [
    "Aggregation",
    "Entity",
    "Scheme",
    "Span",
    "aggregate",
    "detect",
    "encode",
    "parse",
    "repaired",
    "spans",
    "strict_spans",
]
