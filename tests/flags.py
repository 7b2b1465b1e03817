"""XLA flags of the tests, whose programs are many, small, and run only a few times."""

from importlib.metadata import version

# LLVM optimizes little, and XLA emits loops itself instead of through MLIR: a train step compiles in less than half the
# time. (Without any optimization the tanh of gelu has an error of 9e-6.) XLA's own passes and the libraries of its
# matrix products stay the same. A flag that a jaxlib does not know ends the process, so old versions alone get it.
COMPILER = "--xla_backend_optimization_level=1"
# Without unrolled loops, as in training, and without this vectorizer a train step of two layers on eight devices
# compiles in a fifth less time (8.4 to 6.7 s), with the same numbers.
COMPILER += " --xla_backend_extra_options=xla_cpu_disable_loop_unrolling,xla_cpu_disable_slp_vectorizer"
if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10):
    COMPILER += " --xla_cpu_use_fusion_emitters=false"


def with_devices(count: int) -> str:
    """Return XLA_FLAGS for a process with `count` virtual CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {COMPILER}"
