"""Metrics of whole evaluation sets, with the values of the tasks' official scripts."""
