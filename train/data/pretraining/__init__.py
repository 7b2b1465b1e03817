"""Data of pretraining: text to a store of tokens, and a store to examples and batches, made while training."""
