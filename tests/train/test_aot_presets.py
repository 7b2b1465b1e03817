import dataclasses
from pathlib import Path

import jax
import pytest

from train.aot.__main__ import for_slice, main
from train.aot.topology import Preset
from train.command import load_config
from train.distributed import MeshShape, Placement

CONFIG = Path(__file__).parents[2] / "configs/pretrain_base_128.py"


@pytest.mark.parametrize(
    ("preset", "devices", "mesh"),
    [
        (Preset.REPLICATED, 256, (256, 1, 1)),
        (Preset.FSDP, 256, (16, 16, 1)),
        (Preset.FSDP, 1024, (64, 16, 1)),
        (Preset.FSDP, 4, (1, 4, 1)),
        (Preset.FSDP_TENSOR, 256, (8, 16, 2)),
        (Preset.FSDP_TENSOR, 16, (1, 8, 2)),
        (Preset.FSDP_TENSOR, 1, (1, 1, 1)),
    ],
)
def test_a_preset_is_a_mesh_of_all_devices(preset, devices, mesh):
    assert preset.mesh(devices) == MeshShape(*mesh)


@pytest.mark.parametrize("preset", Preset)
def test_devices_here_are_placed_by_a_preset(preset):
    mesh = Placement.of(preset.mesh(jax.device_count())).mesh
    assert mesh.devices.size == jax.device_count() == 8
    assert mesh.shape["tensor"] == (2 if preset is Preset.FSDP_TENSOR else 1)


def test_rows_and_mesh_are_those_of_the_slice():
    config = load_config(CONFIG)
    found = for_slice(config, 64, preset=Preset.FSDP_TENSOR, rows_per_device=32)
    assert found.mesh == MeshShape(2, 16, 2)
    assert found.run.batch_size == 2048  # 32 for every device, 64 for every pair
    asked = dataclasses.replace(config, mesh=MeshShape(fsdp=4))
    assert for_slice(asked, 64, preset=None, rows_per_device=None) == asked


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "fsdp", "--mesh.fsdp", "4"], "--preset fsdp and --mesh.fsdp both set the mesh"),
        (["--preset", "replicated", "--mesh.tensor=2"], "--preset replicated and --mesh.tensor both set"),
        (["--rows-per-device", "8", "--run.batch_size", "64"], "--rows-per-device and --run.batch-size both set"),
    ],
)
def test_flags_that_set_the_same_thing_are_refused(flags, message, capsys):
    assert main([str(CONFIG), "--topology", "v5e:2x2", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_an_unknown_preset_names_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(CONFIG), "--topology", "v5e:2x2", "--preset", "zero"])
    assert "choose from replicated, fsdp, fsdp+tensor" in capsys.readouterr().err.replace("'", "")
