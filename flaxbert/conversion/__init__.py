"""The commands on checkpoints, each in a file of its name: `convert`, `inspect`, `verify` and `average`.

`origin` turns the name of a folder, file, zip or hub model into a path; `matching` finds the class for its tensors;
`unknown_models` copies checkpoints of families without a class here.
"""
