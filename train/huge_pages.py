"""Huge pages for the large arrays of a run on the CPU."""

import os
import sys
from pathlib import Path


def use_huge_pages() -> None:
    """Starts this process again with huge pages for large allocations, where Linux gives them to those who ask.

    XLA's CPU backend takes the temporaries of every step from malloc anew, and in small pages their page faults are
    a sixth of a fine-tuning step. glibc reads this setting at start only; one that is set already is left alone.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" not in os.environ and setting.is_file() and "[madvise]" in setting.read_text():
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)
