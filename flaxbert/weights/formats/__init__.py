"""One module for each file format: lazy readers, and writers that hold one tensor at a time."""
