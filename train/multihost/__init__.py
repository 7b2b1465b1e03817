"""Runs on several hosts; a run on one host needs only the settings in `hosts.py`."""
