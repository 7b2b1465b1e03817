"""How the tests' programs are compiled: many, small, and each run a few times."""

from importlib.metadata import version

# LLVM optimizes little, and XLA emits loops by itself instead of through MLIR: a train step compiles in less than half
# of the time. (Without any optimization the tanh of gelu is off by 9e-6.) XLA's own passes, and the libraries that do
# its matrix products, are the same. A flag that a jaxlib does not know would end the process: it is for those known to
# have it.
COMPILER = "--xla_backend_optimization_level=1"
if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10):
    COMPILER += " --xla_cpu_use_fusion_emitters=false"


def with_devices(count: int) -> str:
    """XLA_FLAGS of a process with so many virtual CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {COMPILER}"
