import re
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.functional import interpolate

from kdgan_compress.export.graph import detector_graph
from kdgan_compress.gans import Architecture, build

THRESHOLD = 0.1
SIZES = [(32, 32), (29, 37), (97, 64), (28, 28)]
COMBINATIONS = [
    ("ede", "per_image", 1),
    ("ede", "batch", 3),
    ("ed", "per_image", 3),
    ("ed_ehat", "batch", 1),
    ("cvgad", "per_image", 3),
    ("cvgad", "batch", 1),
]


@dataclass
class Case:
    generator: torch.nn.Module
    weights_before: dict[str, torch.Tensor]
    channels: int
    model: onnx.ModelProto
    content: bytes
    session: onnxruntime.InferenceSession


def tiny_generator(architecture: Architecture) -> torch.nn.Module:
    """With convolutions that matter and, for batch norm, running statistics of some training passes."""
    generator = build(architecture, seed=3).generator
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.mul_(10)
        for _ in range(3):
            generator(torch.rand(8, architecture.image_channels, 32, 32, generator=noise) * 2 - 1)
        if architecture.family == "cvgad":
            generator.score_scale.copy_(torch.tensor([0.5, 0.02]))
    return generator.eval()


@pytest.fixture(scope="module", params=COMBINATIONS, ids=lambda combination: "-".join(map(str, combination)))
def case(request):
    family, norm, channels = request.param
    architecture = Architecture(
        family=family,
        channels=(1, 2, 4),
        image_channels=channels,
        latent_size=16,
        norm=norm,
        num_clusters=3 if family == "cvgad" else None,
    )
    generator = tiny_generator(architecture)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    model = detector_graph(generator, architecture, THRESHOLD)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return Case(generator, before, channels, model, content, session)


def photos(count: int, height: int, width: int, channels: int) -> np.ndarray:
    generator = np.random.default_rng(height * width)
    return generator.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def by_torch(generator: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    levels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    levels = interpolate(levels, (32, 32), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        return generator.anomaly_score(levels / 127.5 - 1).numpy()


def test_checker_passes(case):
    onnx.checker.check_model(case.content, full_check=True)


def test_one_standard_opset(case):
    assert [(opset.domain, opset.version) for opset in case.model.opset_import] == [("", 18)]
    assert {node.domain for node in case.model.graph.node} == {""}
    assert len(case.model.functions) == 0


def test_every_shape_can_be_inferred(case):
    """A Squeeze of an axis that isn't 1 long, say, can not."""
    onnx.shape_inference.infer_shapes(case.model, check_type=True, strict_mode=True, data_prop=True)


def test_inputs_and_outputs(case):
    def described(values):
        return [
            (
                value.name,
                value.type.tensor_type.elem_type,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        ]

    kinds = onnx.TensorProto
    assert described(case.model.graph.input) == [
        ("image", kinds.UINT8, ["N", "H", "W", case.channels]),
        ("threshold", kinds.FLOAT, []),
    ]
    assert described(case.model.graph.output) == [("score", kinds.FLOAT, ["N"]), ("is_anomaly", kinds.BOOL, ["N"])]


def test_threshold_is_optional(case):
    assert [given.name for given in case.session.get_inputs()] == ["image"]
    assert [given.name for given in case.session.get_overridable_initializers()] == ["threshold"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_scores_are_torchs(case, size, batch):
    images = photos(batch, *size, case.channels)
    score, is_anomaly = case.session.run(None, {"image": images})
    assert (score.shape, score.dtype) == ((batch,), np.float32)
    assert (is_anomaly.shape, is_anomaly.dtype) == ((batch,), np.bool_)
    np.testing.assert_allclose(score, by_torch(case.generator, images), rtol=1e-4)


def test_images_differ_in_score(case):
    (score,) = case.session.run(["score"], {"image": photos(3, 40, 40, case.channels)})
    assert np.ptp(score) > 1e-3 * score.max()


def test_score_does_not_depend_on_the_batch(case):
    images = photos(3, 33, 35, case.channels)
    (together,) = case.session.run(["score"], {"image": images})
    alone = [case.session.run(["score"], {"image": images[i : i + 1]})[0][0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_verdict_flips_with_the_threshold(case):
    images = photos(3, 32, 32, case.channels)
    score, by_default = case.session.run(None, {"image": images})
    assert by_default.tolist() == [value > THRESHOLD for value in score]
    for threshold in (*score, score.min() / 2, score.max() * 2):
        (verdict,) = case.session.run(["is_anomaly"], {"image": images, "threshold": np.array(threshold, np.float32)})
        assert verdict.tolist() == (score > threshold).tolist()


def test_weights_are_inside(case):
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in case.model.graph.initializer)
    assert not any(tensor.external_data for tensor in case.model.graph.initializer)


def test_nothing_tells_where_it_was_made(case):
    parts = [*case.model.graph.node, *case.model.graph.initializer, *case.model.graph.input, *case.model.graph.output]
    attributes = [attribute for node in case.model.graph.node for attribute in node.attribute]
    assert all(part.doc_string == "" for part in [case.model, case.model.graph, *parts, *attributes])
    assert all(len(part.metadata_props) == 0 for part in [case.model, case.model.graph, *parts])
    assert len(case.model.graph.value_info) == 0

    words = onnx.ModelProto()
    words.CopyFrom(case.model)
    for tensor in words.graph.initializer:
        tensor.ClearField("raw_data")  # random bytes may look like anything
    text = words.SerializeToString()
    assert b".py" not in text
    assert re.search(rb"(/[\w.-]+){2}", text) is None


def test_generator_is_left_as_it_was(case):
    weights = case.generator.state_dict()
    assert weights.keys() == case.weights_before.keys()
    assert all(torch.equal(value, case.weights_before[name]) for name, value in weights.items())
    assert all(parameter.requires_grad for parameter in case.generator.parameters())
