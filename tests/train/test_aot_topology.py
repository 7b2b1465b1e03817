import sys

import pytest

from train.aot.__main__ import main
from train.aot.topology import LibtpuMissing, slice_devices
from train.flops import CHIPS

# Multiply-adds a cycle of one chip: units x rows x columns; for v6e and tpu7x those that `flops.py` infers.
UNITS = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2, "tpu7x": 2 * 4 * 256**2}


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_the_clock_is_the_peaks(chip):
    assert chip.clock * 2 * UNITS[chip.name] == pytest.approx(chip.peak_flops, rel=0.01)


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:", "v5e:4", "v5e:4x4x4", "v5p:4x4", "v9:2x2", "v5e:2xx", "v5e:0x2", "v5e:3x3", "v5e:32x16", ""]
)
def test_an_unknown_topology_names_the_known_ones(name):
    expected = "give GENERATION:SHAPE, .*: v5e, v6e have two .*v4, v5p, tpu7x three"
    with pytest.raises(ValueError, match=f"the topology is '{name}'; {expected}"):
        slice_devices(name)


def test_a_missing_libtpu_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)  # Python's own mark of a module that is not there
    with pytest.raises(LibtpuMissing, match=r"pip install -e '\.\[tpu\]'"):
        slice_devices("v5e:2x2")
    assert main(["configs/quickstart.py", "--topology", "v5e:2x2"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: the TPU compiler is not installed")
    assert message.count("\n") == 1


def test_a_mistake_is_answered_before_anything_is_compiled(capsys):
    assert main(["configs/nothing.py", "--topology", "v5e:2x2"]) == 2
    assert "no such config; there are" in capsys.readouterr().err
    assert main(["configs/quickstart.py", "--topology", "v5e"]) == 2
    assert "give GENERATION:SHAPE" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["configs/quickstart.py"])
