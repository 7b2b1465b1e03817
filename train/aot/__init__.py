"""Estimate of a train step's cost on a TPU slice, from its compiled program; no TPU is needed."""
