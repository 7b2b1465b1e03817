"""What is trained: a file a task, from its data to its loss, metrics and predictions."""
