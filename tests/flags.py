"""XLA flags of the tests, whose programs are many, small, and run only a few times."""

from importlib.metadata import version

# LLVM does not optimize, and XLA emits loops itself instead of through MLIR: a train step of two layers on 8 devices
# compiles in a third of the time. XLA's own passes and the libraries of its matrix products stay the same; a test of
# tails in float32 compiles its function as in use. A flag that a jaxlib does not know ends the process, so old versions
# alone get the second one.
COMPILER = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10):
    COMPILER += " --xla_cpu_use_fusion_emitters=false"


def with_devices(count: int) -> str:
    """Return XLA_FLAGS for a process with `count` virtual CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {COMPILER}"
