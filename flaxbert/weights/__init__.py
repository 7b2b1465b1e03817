"""Model folders and their weights: `load` and `folder` for whole models, `formats` for each file format."""
