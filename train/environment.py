"""What a run on the CPU asks of its process, by environment variables, before jax is there to read them."""

import os
import sys
from pathlib import Path

_XLA_OPTION = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"


def compile_quickly() -> None:
    """Keeps XLA's CPU backend from unrolling the loops of its kernels; XLA_FLAGS that set such options win.

    A fine-tuning step takes a quarter less to compile and no longer to run: its time is in matrix products, which
    are no kernels of XLA's own.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_XLA_OPTION}".strip()


def use_huge_pages() -> None:
    """Starts this process again with huge pages for large allocations, where Linux gives them to those who ask.

    XLA's CPU backend takes the temporaries of every step from malloc anew, and in small pages their page faults are
    a sixth of a fine-tuning step. glibc reads this setting at start only; one that is set already is left alone.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" not in os.environ and setting.is_file() and "[madvise]" in setting.read_text():
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)
