"""Checks that need a GPU, as commands of their own."""
