"""What a train step would cost on a TPU slice, estimated from its compiled program; no TPU is needed."""
