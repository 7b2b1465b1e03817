"""What a process that tokenises does; imports little, because it is imported as often as there are processes."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

from train.data.corpus.tokens import SentenceTokenizer, Tokens

_tokenizer: SentenceTokenizer | None = None


def start(make: Callable[[], SentenceTokenizer]) -> None:
    """Makes the tokenizer of this process."""
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a thread for each process
    _tokenizer = make()
    gc.disable()  # millions of lists of numbers, and no cycle among them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()


def tokens_of(piece: str) -> Tokens:
    """The tokens of a piece of text."""
    assert _tokenizer is not None
    return _tokenizer(piece)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
