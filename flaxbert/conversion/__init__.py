"""The commands on checkpoints, each in a file of its name: `convert`, `inspect`, `verify` and `average`.

`origin` turns the name of a folder, file, zip or hub model into a path; `model_checkpoint` finds the class for its
tensors; `shape_changes` prunes heads, drops layers and resizes the vocabulary.
"""
