"""Texts around a model: windows over long texts, answer spans, entity tags, tables of texts."""
