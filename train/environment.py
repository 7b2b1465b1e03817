"""What a run on the CPU asks of its process before jax starts its backend; other devices are not touched by it."""

import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

# Large blocks of memory in huge pages, and kept by the process when freed instead of handed back to the system.
_MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1099511627776:glibc.malloc.trim_threshold=1099511627776"
_XLA_OPTION = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"


def keep_memory() -> None:
    """Starts this process again with malloc set to keep large blocks, where Linux gives huge pages on request.

    XLA's CPU backend takes the temporaries of every step from malloc anew. Handed back after each step, they cost a
    fine-tuning step 3 to 18 % of its time in clearing pages anew, most where batches vary in length. glibc reads these
    settings at start only; GLIBC_TUNABLES that are set already are left alone. `run_inline` has to go with it.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" not in os.environ and setting.is_file() and "[madvise]" in setting.read_text():
        os.environ["GLIBC_TUNABLES"] = _MALLOC
        os.execv(sys.executable, sys.orig_argv)


def compile_quickly() -> None:
    """Keeps XLA's CPU backend from unrolling the loops of its kernels; XLA_FLAGS that set such options win.

    A fine-tuning step takes a tenth less to compile (three lengths, three times: 27.3 to 24.2 s) and no longer to
    run: its time is in matrix products, which are no kernels of XLA's own.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_XLA_OPTION}".strip()


def without_false_alarm() -> None:
    """Keeps jax from logging, where it has a CPU alone, that programs kept on this very machine may not suit it.

    It compares preferences of the compiler with what the CPU can do (https://github.com/openxla/xla/issues/44565), on
    every start that finds programs. Its other errors are raised, too; a level that is set already stays, and so does
    what hosts log that wait for one another.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ or any("--hosts" in flag for flag in sys.argv):
        return
    # Looked up last: it reads the metadata of every installed package.
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not (entry_points(group="jax_plugins") or find_spec("libtpu")):
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # fatal ones


def run_inline() -> None:
    """Lets the CPU backend run a step in the thread that asks for it, where `keep_memory` has set malloc.

    Only the main thread's memory can be kept: glibc gives every other thread blocks of 64 MB at most, and what is
    larger goes back to the system when it is freed.
    """
    if os.environ.get("GLIBC_TUNABLES") != _MALLOC:
        return
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
