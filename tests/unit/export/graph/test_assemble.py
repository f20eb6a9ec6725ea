"""What a detector takes and gives, in every interface, against torch's own resizing and reconstruction."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tiny_graphs import THRESHOLD, architecture, by_torch, detector_of, generator_of, photos, resized, session_of
from torch import nn
from torch.nn.functional import interpolate

from kdgan_compress.errors import KdganError
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.graph.passes import REWRITES
from kdgan_compress.export.graph.trace import trace
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.gans import ImageFormat

FLOAT_PASSES = ExportSettings().selected_rewrites
SIZES = [(16, 16), (13, 21), (48, 16), (97, 64), (7, 5), (1, 30), (17, 16)]


@dataclass
class Case:
    generator: nn.Module
    core: ir.Model
    described: object

    @property
    def channels(self) -> int:
        return self.described.image_channels

    def session(self, names=FLOAT_PASSES, **io):
        return session_of(detector_of(self.core, self.described, names, IOSpec(**io))[0])

    def reconstructions(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            code = self.generator.encoder(pixels)
            return self.generator.decoder(code[0] if isinstance(code, tuple) else code)


@pytest.fixture(
    scope="module",
    params=[("ede", "batch", 3), ("ed", "instance", 1), ("cvgad", "batch", 1)],
    ids=lambda combination: "-".join(map(str, combination)),
)
def case(request, traced):
    generator, core, described = traced(*request.param, x_hat="decoder")
    return Case(generator, core, described)


def described_values(values) -> list:
    return [(value.name, value.type, value.shape) for value in values]


def test_names_types_and_shapes(case):
    session = case.session()
    assert described_values(session.get_inputs()) == [("image", "tensor(uint8)", ["N", "H", "W", case.channels])]
    assert described_values(session.get_overridable_initializers()) == [("threshold", "tensor(float)", [])]
    assert described_values(session.get_outputs()) == [
        ("score", "tensor(float)", ["N"]),
        ("is_anomaly", "tensor(bool)", ["N"]),
    ]


def test_names_types_and_shapes_of_all_that_can_be_asked_for(case):
    session = case.session(input="float", input_size=(20, 30), batch_size=1, reconstruction=True, anomaly_map=True)
    assert described_values(session.get_inputs()) == [("image", "tensor(float)", [1, case.channels, 20, 30])]
    assert described_values(session.get_outputs()) == [
        ("score", "tensor(float)", [1]),
        ("is_anomaly", "tensor(bool)", [1]),
        ("reconstruction", "tensor(float)", [1, case.channels, 16, 16]),
        ("anomaly_map", "tensor(float)", [1, 16, 16]),
    ]
    session = case.session(reconstruction=True, anomaly_map=True)
    assert described_values(session.get_outputs())[2:] == [
        ("reconstruction", "tensor(uint8)", ["N", 16, 16, case.channels]),
        ("anomaly_map", "tensor(float)", ["N", 16, 16]),
    ]


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_scores_of_any_size_are_torchs(case, kind):
    session = case.session(input=kind)
    for size in SIZES:
        images = photos(3, *size, case.channels)
        score, is_anomaly = session.run(None, {"image": given(images, kind)})
        assert (score.shape, score.dtype, is_anomaly.dtype) == ((3,), np.float32, np.bool_)
        np.testing.assert_allclose(score, by_torch(case.generator, images), rtol=1e-4)
        assert is_anomaly.tolist() == (score > np.float32(THRESHOLD)).tolist()


def given(images: np.ndarray, kind: str) -> np.ndarray:
    return images if kind == "uint8" else images.transpose(0, 3, 1, 2).astype(np.float32) / 255


def test_float_input_is_not_rounded_to_bytes(case):
    """A ramp in steps of a tenth of a level."""
    session = case.session(input="float")
    pixels = torch.linspace(0.3, 0.4, 24 * 24).view(1, 1, 24, 24).repeat(1, case.channels, 1, 1)
    small = interpolate(pixels, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        expected = case.generator.anomaly_score(small * 2 - 1).numpy()
    np.testing.assert_allclose(session.run(["score"], {"image": pixels.numpy()})[0], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_input_size(case, kind):
    session = case.session(input=kind, input_size=(21, 13))
    images = photos(4, 21, 13, case.channels)
    (score,) = session.run(["score"], {"image": given(images, kind)})
    np.testing.assert_allclose(score, by_torch(case.generator, images), rtol=1e-4)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        session.run(["score"], {"image": given(photos(1, 13, 21, case.channels), kind)})


def test_input_size_of_the_networks_size_is_not_resized(case):
    model, _ = detector_of(case.core, case.described, (), IOSpec(input_size=(16, 16)))
    assert "Resize" not in {node.op_type for node in model.graph}
    images = photos(4, 16, 16, case.channels)
    (score,) = session_of(model).run(["score"], {"image": images})
    np.testing.assert_allclose(score, by_torch(case.generator, images), rtol=1e-5)


def test_batch_size_1(case):
    session = case.session(batch_size=1)
    images = photos(3, 19, 23, case.channels)
    expected = by_torch(case.generator, images)
    for index in range(3):
        (score,) = session.run(["score"], {"image": images[index : index + 1]})
        np.testing.assert_allclose(score, expected[index : index + 1], rtol=1e-4)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        session.run(["score"], {"image": images})


@pytest.mark.parametrize("names", [frozenset(), frozenset(REWRITES)], ids=["no rewrites", "all"])
@pytest.mark.parametrize("size", [(16, 16), (29, 40)])
def test_reconstruction_is_the_decoders(case, names, size):
    images = photos(6, *size, case.channels)
    pixels = resized(images, 16)
    x_hat = case.reconstructions(pixels).numpy()
    as_bytes = case.session(names, reconstruction=True, anomaly_map=True)
    score, _, reconstruction, error = as_bytes.run(None, {"image": images})
    levels = (x_hat.transpose(0, 2, 3, 1) + 1) * 127.5
    assert (reconstruction.dtype, reconstruction.shape) == (np.uint8, (6, 16, 16, case.channels))
    assert np.abs(reconstruction - levels).max() < 0.5 + 0.01
    np.testing.assert_allclose(error, np.abs(pixels.numpy() - x_hat).mean(1) / 2, atol=1e-5)
    assert 0.01 < error.mean() < error.max() <= 1
    np.testing.assert_allclose(score, by_torch(case.generator, images), rtol=1e-4)
    as_floats = case.session(names, input="float", reconstruction=True, anomaly_map=True)
    _, _, reconstruction, error_of_floats = as_floats.run(None, {"image": given(images, "float")})
    np.testing.assert_allclose(reconstruction, (x_hat + 1) / 2, atol=1e-5)
    np.testing.assert_allclose(error_of_floats, error, atol=1e-5)


def test_each_map_alone(case):
    images = {"image": photos(2, 16, 16, case.channels)}
    both = case.session(reconstruction=True, anomaly_map=True).run(["reconstruction", "anomaly_map"], images)
    for index, name in enumerate(("reconstruction", "anomaly_map")):
        session = case.session(**{name: True})
        assert [output.name for output in session.get_outputs()] == ["score", "is_anomaly", name]
        np.testing.assert_allclose(session.run([name], images)[0], both[index], atol=1e-6)


def test_score_does_not_depend_on_the_batch(case):
    images = photos(300, 16, 16, case.channels)
    session = case.session()
    (together,) = session.run(["score"], {"image": images})
    alone = [session.run(["score"], {"image": images[i : i + 1]})[0][0] for i in range(0, 300, 29)]
    np.testing.assert_allclose(together[::29], alone, rtol=1e-5)


def test_decision_flips_with_the_threshold(case):
    images = photos(5, 16, 16, case.channels)
    session = case.session()
    (score,) = session.run(["score"], {"image": images})
    for threshold in (*score, np.nextafter(score.min(), np.float32(0)), score.max() * 2):
        (verdict,) = session.run(["is_anomaly"], {"image": images, "threshold": np.array(threshold, np.float32)})
        assert verdict.tolist() == (score > threshold).tolist()


@pytest.mark.parametrize(
    "io", [{}, {"input": "float", "batch_size": 1}, {"reconstruction": True, "input_size": (9, 9)}]
)
def test_one_standard_opset_and_no_function(case, io):
    model, _ = detector_of(case.core, case.described, FLOAT_PASSES, IOSpec(**io))
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert len(proto.functions) == 0


class Brightens(nn.Module):
    """Reconstructs beyond the range of images, as a decoder without tanh may."""

    def __init__(self):
        super().__init__()
        self.paint = nn.Conv2d(1, 1, 1)
        with torch.no_grad():
            self.paint.weight.fill_(1.5)
            self.paint.bias.fill_(0.1)

    def anomaly_score(self, images):
        return (images - self.paint(images)).abs().flatten(1).mean(1)


def test_reconstruction_beyond_the_range_is_white_or_black():
    described = ImageFormat(16, 1)
    core = trace(Brightens().eval(), described, "paint")
    session = session_of(detector_of(core, described, (), IOSpec(reconstruction=True))[0])
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    (levels,) = session.run(["reconstruction"], {"image": images})
    expected = ((images / 127.5 - 1) * 1.5 + 0.1 + 1) * 127.5
    assert np.abs(levels - np.clip(expected, 0, 255)).max() < 0.51
    assert expected.min() < -1
    assert expected.max() > 256


def test_tensor_that_is_tapped_may_be_scored_too():
    """The reconstruction is an output of its own, whatever becomes of it."""
    generator = generator_of(architecture("ed", "batch", 1))
    core = trace(generator, architecture("ed", "batch", 1), "decoder")
    assert len({value.name for value in core.graph.outputs}) == 2


@pytest.mark.parametrize("input_size", [(0, 5), (5, 0), (-1, -1)])
def test_empty_input_size(input_size):
    with pytest.raises(KdganError, match=r"input size must be at least 1×1 pixel; got \("):
        IOSpec(input_size=input_size)


def test_tiles_have_a_map_by_default_and_no_reconstruction():
    given = [IOSpec(anomaly_map=wanted) for wanted in (None, False, True)]
    assert [each.resolve(is_tiled=True).anomaly_map for each in given] == [True, False, True]
    assert [each.resolve(is_tiled=False).anomaly_map for each in given] == [False, False, True]
    assert IOSpec(reconstruction=True).resolve(is_tiled=False).reconstruction
    with pytest.raises(KdganError, match="Photos cut into tiles have no reconstruction"):
        IOSpec(reconstruction=True).resolve(is_tiled=True)
