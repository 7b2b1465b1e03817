"""Checkpoints of a run: step, parameters, optimizer state and manifest, written together or not at all."""
