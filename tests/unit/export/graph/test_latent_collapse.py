"""The latent collapsed and truncated, by counts made by hand, NumPy's SVD and torch with projected weights."""

import copy
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.helper import make_node
from tiny_graphs import architecture, by_torch, detector_of, from_nodes, num_floats, operators, photos, run, session_of

from kdgan_compress.errors import KdganError
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.graph.passes import run_passes
from kdgan_compress.export.graph.passes.latent import find_latent, truncate_latent
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ValidationData
from kdgan_compress.runtime import Detector


@pytest.mark.parametrize(
    ("channels", "before", "after"),
    [((1, 2, 4), 49_722, 16_954), ((2, 4, 8), 100_404, 67_636)],
)
def test_weights_of_the_papers_students(traced, channels, before, after):
    """Three heads of 16·c₃ · 256 numbers become 16·c₃ · 2 · 16·c₃ and 16·c₃ · min(32·c₃, 256); the rest stays.

    The rest: three trunks of 16 · (c₁ + c₁c₂ + c₂c₃) numbers and their norms of 2 · (c₁ + c₂ + c₃).
    """
    one, two, three = channels
    rest = 3 * (16 * (one + one * two + two * three) + 2 * (one + two + three))
    assert before == 3 * 16 * three * 256 + rest
    assert after == (16 * three) ** 2 * 2 + 16 * three * min(32 * three, 256) + rest
    generator, core, described = traced("ede", "instance", channels=channels, image_size=32, latent_size=256)
    model, _ = detector_of(core, described, {"latent"})
    assert (num_floats(core), num_floats(model)) == (before, after)
    images = photos(200, 32, 32, 1)
    (scores,) = session_of(model).run(["score"], {"image": images})
    np.testing.assert_allclose(scores, by_torch(generator, images, 32), rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "channels", "latent", "changes"),
    [
        ("ede", (1, 8), 100, 0),  # 128 features: longer than the latent
        ("ed", (1, 2), 32, 0),  # 32 features: as long
        ("ed", (1, 2), 33, 1),
        ("ede", (1, 2), 32, 0),
        ("ede", (1, 2), 33, 1),
        ("ed_ehat", (1, 2), 33, 1),
    ],
)
def test_latent_collapses_only_where_that_saves_weights(traced, family, channels, latent, changes):
    _, core, described = traced(family, "instance", channels=channels, latent_size=latent)
    model, counts = detector_of(core, described, {"latent"})
    assert counts == {"latent": changes}
    assert (num_floats(model) < num_floats(core)) is bool(changes)


def test_latent_of_the_wide_networks_stays():
    """8-16-64: 1024 features before 256."""
    graph = code(features=1024, latent=256)
    assert find_latent(graph.graph) is not None
    assert run_passes(graph, {"latent"}) == {"latent": 0}


def code(
    features=32, latent=64, *, head="w", groups=1, between=(), opening="v", opening_groups=1, behind=()
) -> ir.Model:
    """z of ``features`` numbers as 2×2 maps, the opening's map summed; and what else is said."""
    numbers = np.random.default_rng(0)
    constants = {
        "w": numbers.normal(size=(latent, features // 4 // groups, 2, 2)).astype(np.float32),
        "bias": np.ones(latent, np.float32),
        "v": numbers.normal(size=(latent, 3, 2, 2)).astype(np.float32),
        "quarter": numbers.normal(size=(latent // 4, 3, 2, 2)).astype(np.float32),
        "as maps": np.array([-1, latent // 4, 2, 2]),
        "axes": np.array([1, 2, 3]),
        "one": np.array([1]),
    }
    nodes = [
        make_node("Conv", ["images", *head.split()], ["z"], group=groups),
        *between,
        make_node("ConvTranspose", [between[-1].output[0] if between else "z", opening], ["x"], group=opening_groups),
        make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        *behind,
        make_node("Abs", [behind[-1].output[0] if behind else "mean"], ["score"]),
    ]
    used = {name for node in nodes for name in node.input}
    return from_nodes(nodes, {k: v for k, v in constants.items() if k in used}, ["N", features // 4, 2, 2])


LENGTH = [make_node("ReduceL2", ["z", "axes"], ["length"], keepdims=0), make_node("Add", ["mean", "length"], ["both"])]


@pytest.mark.parametrize(
    ("graph", "changes"),
    [
        (code(), 1),
        (code(features=32, latent=32), 0),
        (code(head="w bias"), 0),
        (code(groups=2), 0),
        (code(opening_groups=2), 0),
        (code(between=[make_node("Relu", ["z"], ["a"])]), 0),
        (code(between=[make_node("Reshape", ["z", "as maps"], ["a"])], opening="quarter"), 0),
        (code(behind=LENGTH), 0),
    ],
    ids=["bare", "square", "bias", "groups", "groups of the opening", "activation", "reshaped", "read by others"],
)
def test_only_a_bare_code_is_collapsed(graph, changes):
    features = np.random.default_rng(1).normal(size=(5, graph.graph.inputs[0].shape[1], 2, 2)).astype(np.float32)
    before = run(graph, features)
    assert run_passes(graph, {"latent"}) == {"latent": changes}
    np.testing.assert_allclose(run(graph, features), before, rtol=1e-4, atol=1e-6)


def test_code_that_is_given_out_stays():
    graph = code()
    graph.graph.outputs.append(next(node for node in graph.graph if node.op_type == "Conv").outputs[0])
    assert run_passes(graph, {"latent"}) == {"latent": 0}


def two_codes(axes=(1,), flat=True, second=24, swapped=False) -> ir.Model:
    """‖z1 − z2‖ of two heads, z1 opened as well."""
    numbers = np.random.default_rng(0)
    constants = {
        "w": numbers.normal(size=(24, 2, 2, 2)).astype(np.float32),
        "u": numbers.normal(size=(second, 2, 2, 2)).astype(np.float32),
        "v": numbers.normal(size=(24, 2, 2, 2)).astype(np.float32),
        "axes": np.array(axes),
    }
    pair = (["f1", "f2"] if flat else ["z1", "z2"])[:: -1 if swapped else 1]
    flatten = [make_node("Flatten", ["z1"], ["f1"]), make_node("Flatten", ["z2"], ["f2"])]
    nodes = [
        make_node("Conv", ["images", "w"], ["z1"]),
        make_node("ConvTranspose", ["z1", "v"], ["x"]),
        make_node("Tanh", ["x"], ["y"]),
        make_node("Conv", ["y", "u"], ["z2"]),
        *(flatten if flat else []),
        make_node("Sub", pair, ["difference"]),
        make_node("ReduceL2", ["difference", "axes"], ["score"], keepdims=0),
    ]
    return from_nodes(nodes, constants, ["N", 2, 2, 2])


@pytest.mark.parametrize(
    ("graph", "changes"),
    [
        (two_codes(), 1),
        (two_codes([-1]), 1),
        (two_codes(swapped=True), 1),
        (two_codes([1, 2, 3], flat=False), 0),
        (two_codes([0]), 0),
        (two_codes([0, 1]), 0),
        (two_codes(second=1), 0),
    ],
    ids=["flat", "from behind", "swapped", "as images", "over the batch", "over all", "spread"],
)
@pytest.mark.parametrize("names", [{"latent"}, {"latent", "heads", "opening", "difference", "score"}], ids=len)
def test_two_codes(graph, changes, names):
    graph = graph.clone()
    images = np.random.default_rng(1).normal(size=(5, 2, 2, 2)).astype(np.float32)
    before = run(graph, images)
    assert run_passes(graph, names)["latent"] == changes
    np.testing.assert_allclose(run(graph, images), before, rtol=1e-5)


@dataclass
class Heads:
    """The generator's three matrices with the latent along the first axis."""

    first: np.ndarray
    second: np.ndarray


def heads(generator) -> Heads:
    def matrix(layer):
        return layer.weight.detach().double().flatten(1).numpy()

    return Heads(matrix(generator.encoder.head), matrix(generator.encoder2.head))


@pytest.mark.parametrize("rank", [1, 7, 39])
def test_loss_of_a_truncation_is_that_of_numpys_svd(traced, rank):
    generator, core, _ = traced("ede", "batch", 1)
    both = heads(generator)
    singular = np.linalg.svd(np.hstack([both.first, both.second]), compute_uv=False)
    model = core.clone()
    lost = truncate_latent(model, rank)
    assert lost == pytest.approx((singular[rank:] ** 2).sum() / (singular**2).sum(), rel=1e-5)
    assert find_latent(model.graph).size == rank


@pytest.mark.parametrize("rank", [1, 7, 39])
@pytest.mark.parametrize("names", [frozenset(), {"latent", "heads", "opening", "difference", "score"}], ids=len)
def test_truncated_scores_are_torchs_with_projected_codes(traced, rank, names):
    generator, core, described = traced("ede", "batch", 1)
    both = heads(generator)
    vectors = torch.from_numpy(np.linalg.svd(np.hstack([both.first, both.second]))[0][:, :rank])
    projected = copy.deepcopy(generator)
    with torch.no_grad():
        for encoder in (projected.encoder, projected.encoder2):
            weight = encoder.head.weight
            weight.copy_((vectors @ (vectors.T @ weight.flatten(1).double())).view_as(weight))
    model = core.clone()
    truncate_latent(model, rank)
    images = photos(50, 16, 16, 1)
    (scores,) = session_of(detector_of(model, described, names)[0]).run(["score"], {"image": images})
    np.testing.assert_allclose(scores, by_torch(projected, images), rtol=2e-5)


def test_loss_without_a_second_code(traced):
    generator, core, _ = traced("ed", "batch", 1)
    singular = torch.linalg.svdvals(generator.encoder.head.weight.detach().double().flatten(1)).numpy()
    assert truncate_latent(core, 5) == pytest.approx((singular[5:] ** 2).sum() / (singular**2).sum(), rel=1e-5)
    assert operators(core)["Pad"] == 0


def validation(count=64) -> ValidationData:
    images = photos(count, 16, 16, 1)
    return ValidationData(images, images, photos(count, 16, 16, 1, seed=1), np.arange(count) % 2 == 0)


@pytest.mark.usefixtures("quick")
def test_rank_in_the_file(traced, tmp_path):
    generator, _, described = traced("ede", "batch", 1)
    settings = ExportSettings(latent_rank=39)
    report = write_detector(
        tmp_path / "d.onnx", generator, described, 1, "by hand", settings, validation=validation(), gate=False
    )
    both = heads(generator)
    singular = np.linalg.svd(np.hstack([both.first, both.second]), compute_uv=False)
    assert report.latent_lost == pytest.approx(singular[39] ** 2 / (singular**2).sum(), rel=1e-4)
    assert report.agreement is not None
    assert Detector(tmp_path / "d.onnx").metadata["latent_rank"] == "39"
    assert report.threshold_rule == "0.99 quantile of 64 normal images' scores"


@pytest.mark.parametrize("rank", [-1, 0, 40, 1000])
@pytest.mark.usefixtures("quick")
def test_rank_out_of_range(traced, tmp_path, rank):
    generator, _, described = traced("ede", "batch", 1)
    settings = ExportSettings(latent_rank=rank)
    with pytest.raises(KdganError, match=rf"rank must be 1 to 39; got {rank}\. Leave it out"):
        write_detector(tmp_path / "d.onnx", generator, described, 1, "by hand", settings, validation=validation())
    assert list(tmp_path.iterdir()) == []


class NoLatent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def anomaly_score(self, images):
        return (images - self.layer(images)).abs().flatten(1).mean(1)


@pytest.mark.usefixtures("quick")
def test_rank_without_a_latent(tmp_path):
    settings, described = ExportSettings(latent_rank=3), architecture()
    with pytest.raises(KdganError, match=r"needs a latent between two convolutions .*; this graph has none"):
        write_detector(tmp_path / "d.onnx", NoLatent(), described, 1, "by hand", settings, validation=validation())


@pytest.mark.usefixtures("quick")
def test_rank_without_images(traced, tmp_path):
    generator, _, described = traced("ede", "batch", 1)
    with pytest.raises(KdganError, match="needs normal images to set its threshold; got none"):
        write_detector(tmp_path / "d.onnx", generator, described, 1, "by hand", ExportSettings(latent_rank=3))
