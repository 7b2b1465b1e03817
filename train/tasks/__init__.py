"""Tasks to train: one file each, from settings and data to loss, metrics and predictions."""
