"""From files to batches of numpy arrays, in an order that is a pure function of (seed, epoch, index)."""
