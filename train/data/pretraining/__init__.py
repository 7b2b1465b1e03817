"""Examples for masked-LM and next-sentence training, made while training from a store of tokens."""
