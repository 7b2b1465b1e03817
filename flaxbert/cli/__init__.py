"""The command `flaxbert`: `main` reads its words, a file for each kind of them says what they do."""

from flaxbert.cli.command import main

__all__ = ["main"]
