"""The table of precisions: a new row is all that a new precision takes."""

import json

import click
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_graphs import architecture, generator_of, photos

from kdgan_compress.api import profile_variants as module
from kdgan_compress.cli.main import cli, run
from kdgan_compress.errors import KdganError
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.precisions import PRECISIONS, GateLimits, Precision, find_precision, is_exact
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ValidationData
from kdgan_compress.export.validation.golden import make_golden
from kdgan_compress.gans import Architecture
from kdgan_compress.runtime import Detector

pytestmark = pytest.mark.usefixtures("quick")

NAME = "bf16-weights"


def rounded_to_bf16(array: np.ndarray) -> np.ndarray:
    """float32 values of which the lower 16 bits are rounded away."""
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def round_weights(model: ir.Model, _: object) -> ir.Model:
    for value in model.graph.initializers.values():
        array = value.const_value.numpy()
        if array.dtype == np.float32 and array.ndim > 1:
            value.const_value = ir.tensor(rounded_to_bf16(array), name=value.name)
    return model


@pytest.fixture
def new_row(monkeypatch: pytest.MonkeyPatch) -> Precision:
    row = Precision(round_weights, PRECISIONS["fp32"].skipped_passes, golden_tolerance=1e-3)
    monkeypatch.setitem(PRECISIONS, NAME, row)
    return row


def validation(count: int = 64) -> ValidationData:
    images = photos(2 * count, 16, 16, 1)[::2]
    return ValidationData(images, images, images[:0], np.zeros(0, bool))


def write(path, precision, **more):
    described = architecture()
    settings = ExportSettings(precision, rewrites=frozenset({"batch-norm"}))
    return write_detector(path, generator_of(described), described, 0, "", settings, validation=validation(), **more)


@pytest.mark.usefixtures("new_row")
def test_a_new_row_is_exported_gated_and_verified(tmp_path):
    report = write(tmp_path / "d.onnx", NAME)
    detector = Detector(tmp_path / "d.onnx")
    assert (report.precision, detector.metadata["precision"]) == (NAME, NAME)
    assert report.agreement is not None
    assert report.agreement.label_agreement >= 0.99
    assert make_golden(detector).tolerance == 1e-3
    assert not is_exact(detector.metadata)
    weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "d.onnx").graph.initializer]
    matrices = [array for array in weights if array.dtype == np.float32 and array.ndim > 1]
    assert matrices
    assert all(np.array_equal(array, rounded_to_bf16(array)) for array in matrices)


def test_the_limits_of_the_gate_are_those_of_the_row(tmp_path, monkeypatch):
    strict = Precision(round_weights, gate=GateLimits(min_agreement=1.1))
    monkeypatch.setitem(PRECISIONS, NAME, strict)
    with pytest.raises(KdganError, match=rf"{NAME} must agree with fp32 to 1\.1"):
        write(tmp_path / "d.onnx", NAME)
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_needs_calibration_images_gets_them(tmp_path, monkeypatch):
    seen = []

    def convert(model, images):
        seen.append(images)
        return round_weights(model, images)

    monkeypatch.setitem(PRECISIONS, NAME, Precision(convert, min_calibration_images=64))
    write(tmp_path / "d.onnx", NAME)
    np.testing.assert_array_equal(seen[0], validation().train)
    monkeypatch.setitem(PRECISIONS, NAME, Precision(convert, min_calibration_images=65))
    with pytest.raises(KdganError, match=f"{NAME} needs at least 65 normal images for calibration; got 64"):
        write(tmp_path / "d.onnx", NAME)


@pytest.mark.usefixtures("new_row")
def test_the_command_line_and_profile_know_a_new_row(tmp_path, monkeypatch, capsys):
    export = cli.get_command(None, "export")
    assert f"[fp32|fp16|int8|int8-weights|{NAME}]" in export.get_help(click.Context(export))
    described = Architecture(channels=(1, 2), image_size=16, latent_size=32, norm="batch")
    monkeypatch.setattr(module, "PAPER_ARCHITECTURES", (described,))
    assert run(["profile", "--all", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [row["variant"] for row in rows] == ["fp32, no rewrites", "fp32", "fp16", "int8", "int8-weights", NAME]


def test_an_unknown_precision():
    with pytest.raises(KdganError, match=r"must be one of fp32, fp16, int8, int8-weights; got 'int3'"):
        ExportSettings("int3")
    with pytest.raises(KdganError, match="must be one of"):
        find_precision("")
