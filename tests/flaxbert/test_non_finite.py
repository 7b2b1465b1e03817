"""Checkpoints with NaN or infinite numbers: read and copied as they are, with one warning."""

import logging

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flaxbert
from flaxbert.conversion.average import average
from flaxbert.conversion.convert import convert
from tests.flaxbert.saved_models import assert_bit_equal, folder_of, tensors_of

FIRST, SECOND = "bert.embeddings.position_embeddings.weight", "bert.encoder.layer.1.output.dense.bias"


def damaged(folder, *, dtype=np.float32, value=np.nan):
    file = folder_of("BertForMaskedLM", folder, dtype=dtype) / "model.safetensors"
    tensors = load_file(file)
    for name in (FIRST, SECOND):
        tensors[name][-1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def only_warning(caplog):
    warnings = [record.getMessage() for record in caplog.records if "finite" in record.getMessage()]
    assert len(warnings) == 1, caplog.text
    return warnings[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_conversion_copies_them_and_warns_once(tmp_path, caplog, dtype, value):
    folder = damaged(tmp_path / "a", dtype=dtype, value=value)
    with caplog.at_level(logging.WARNING):
        convert(folder, tmp_path / "b", verify=True)
    assert_bit_equal(tensors_of(folder), tensors_of(tmp_path / "b"))
    warning = only_warning(caplog)
    assert str(folder) in warning and f"{FIRST} holds NaN or infinite numbers" in warning


def test_an_average_and_a_loaded_model_warn_once(tmp_path, caplog):
    damaged(tmp_path / "a")
    folder_of("BertForMaskedLM", tmp_path / "b")
    with caplog.at_level(logging.WARNING):
        average([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    assert f"{FIRST} holds NaN" in only_warning(caplog)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        _, params = flaxbert.from_pretrained(tmp_path / "a")
    assert f"{FIRST} holds NaN" in only_warning(caplog)
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(params))


def test_parameters_saved_by_orbax_warn_once(tmp_path, caplog):
    damaged(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", format="orbax")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        flaxbert.from_pretrained(tmp_path / "b")
    assert "holds NaN or infinite numbers" in only_warning(caplog)


def test_finite_numbers_warn_of_nothing(tmp_path, caplog):
    folder = folder_of("BertForMaskedLM", tmp_path / "a")
    with caplog.at_level(logging.WARNING):
        convert(folder, tmp_path / "b")
        flaxbert.from_pretrained(tmp_path / "b")
    assert "finite" not in caplog.text
