"""Settings of the process that must be made before jax is imported or starts its CPU backend.

Accelerators are not affected by them.
"""

import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

# Use huge pages for large blocks, and do not return freed blocks to the system.
_MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1099511627776:glibc.malloc.trim_threshold=1099511627776"
_XLA_OPTION = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"


def restart_with_malloc_settings() -> None:
    """Re-execute this process once with malloc set to keep large blocks, if Linux gives huge pages on request.

    XLA's CPU backend allocates the temporaries of every step by malloc. If they are returned to the system after each
    step, clearing the new pages takes 3 to 18 % of a fine-tuning step, most where batches vary in length. glibc reads
    these settings only at process start. GLIBC_TUNABLES of the user are left alone, and then nothing is restarted.
    Call `run_steps_in_main_thread` too.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" not in os.environ and setting.is_file() and "[madvise]" in setting.read_text():
        os.environ["GLIBC_TUNABLES"] = _MALLOC
        os.execv(sys.executable, sys.orig_argv)


def run_steps_in_main_thread() -> None:
    """Run the CPU backend in the calling thread, if `restart_with_malloc_settings` has set malloc.

    Only the main thread can keep its memory: glibc gives other threads blocks of at most 64 MB, and returns larger
    ones to the system when they are freed.
    """
    if os.environ.get("GLIBC_TUNABLES") != _MALLOC:
        return
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def disable_loop_unrolling() -> None:
    """Keep XLA's CPU backend from unrolling the loops of its kernels, unless XLA_FLAGS sets such options itself.

    A fine-tuning step compiles 11 % faster (three lengths, three times: 27.3 to 24.2 s) and is not slower: its time is
    spent in matrix products, which are not XLA's own kernels.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_XLA_OPTION}".strip()


def silence_xla_log_on_cpu() -> None:
    """Set TF_CPP_MIN_LOG_LEVEL to 3 (fatal errors only) if the CPU is the only device.

    XLA warns at every start with a compilation cache that a cached executable may not match this CPU, although it was
    compiled on it (https://github.com/openxla/xla/issues/44565). Its other errors are also raised as exceptions. A
    level that is already set stays, and runs on several hosts keep their messages about hosts that wait for others.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ or any("--hosts" in flag for flag in sys.argv):
        return
    # Checked last because it reads the metadata of every installed package.
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not (entry_points(group="jax_plugins") or find_spec("libtpu")):
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
