"""The conversion utility: `convert`, `inspect`, `verify` and `average`, each in a file of its name.

`origin` turns what a user names (a folder, a file, a zip, a name on the hub) into a path; `checkpoint` is what lies
there: tensors, config, and the class that takes them.
"""
