"""Weights between this library's parameter tree and Hugging Face's files: `names` is the table, `folder` the files."""

from flaxbert.weights.folder import load, save

__all__ = ["load", "save"]
