"""Benchmarks of this project beside PyTorch and the tokenizers library, measured in turns on one machine."""
