"""Text for a terminal: what a file says must neither steer it nor flood it."""

import logging

_LONGEST, _END = 100_000, 2000


def plain(text: str, *, lines: bool = True) -> str:
    """Text with all that is not printable as in Python's literals, and without its middle where it is endless.

    Args:
        text: whatever a file, or an error about it, says.
        lines: leave line ends as they are.
    """
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}\n... ({len(text):,} characters) ...\n{text[-_END:]}"
    return "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)


class Formatter(logging.Formatter):
    """Of log messages that are plain."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, plain."""
        return plain(super().format(record))
