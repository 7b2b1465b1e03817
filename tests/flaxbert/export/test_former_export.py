"""An exported model that was written by a former version still runs, as long as JAX reads it.

`fixtures/stablehlo_4a809e9.tar.xz` was made at commit 4a809e9 with jax 0.10.1 on one CPU device:
the folder of an exported `BertForMaskedLM` with fresh weights times 20, and the logits that the program gave.
"""

import datetime
import tarfile
from pathlib import Path

import numpy as np
import pytest

from flaxbert.export import load_stablehlo

ARCHIVE = Path(__file__).parent / "fixtures" / "stablehlo_4a809e9.tar.xz"
# JAX promises six months only; afterwards a newer version may refuse the program.
READABLE_UNTIL = datetime.date(2027, 5, 31)


@pytest.mark.skipif(datetime.date.today() > READABLE_UNTIL, reason="JAX need not read this program any more")
def test_an_exported_model_of_a_former_version_runs(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "exported_before"
    ids = np.array([[2, 5, 6, 3, 0], [2, 7, 8, 9, 3]], np.int32)
    found = load_stablehlo(folder)(ids, (ids != 0).astype(np.int32), np.zeros_like(ids))
    wanted = np.load(folder / "expected_logits.npy")
    np.testing.assert_allclose(found["logits"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
