"""Texts around a model: sliding windows, answer spans, entity tags, tables of texts."""
