"""Runs on several hosts: settings, how the hosts find each other, and what they agree on."""
