import json

import numpy as np
import onnx
import pytest
from sklearn.metrics import roc_auc_score

from kdgan_compress.api import profile as measuring
from kdgan_compress.api import profile_variants as module
from kdgan_compress.api.profile import ModelProfile, profile, ratios
from kdgan_compress.api.profile_variants import profile_variants
from kdgan_compress.cli.main import run
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.gans import Architecture, build
from kdgan_compress.profiling.counts import count
from kdgan_compress.profiling.latency import Latency

pytestmark = pytest.mark.usefixtures("quick_runs", "traced_once")

VARIANTS = ["fp32, no rewrites", "fp32", "fp16", "int8", "int8-weights"]
PAPER_ARCHITECTURES = (
    Architecture(channels=(2, 4), image_size=16, latent_size=32, norm="batch"),
    Architecture(channels=(1, 2), image_size=16, latent_size=32, image_channels=3, norm="instance"),
)


def variants_of(report, name):
    return {row.variant: row for row in report.models if row.name == name}


@pytest.fixture(scope="module")
def plans(traced_once):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "PAPER_ARCHITECTURES", PAPER_ARCHITECTURES)
        return profile_variants()


@pytest.fixture(scope="module")
def of_run(pair, traced_once):
    return profile_variants(pair / "student")


def test_every_variant_of_every_architecture_has_a_row(plans):
    names = ["2-4 batch", "1-2 instance"]
    assert [(row.name, row.variant) for row in plans.models] == [(name, form) for name in names for form in VARIANTS]
    for plan, name in zip(PAPER_ARCHITECTURES, names, strict=True):
        generator = build(plan, seed=0).generator
        counts = count(generator, plan)
        rows = variants_of(plans, name)
        assert {row.num_params for row in rows.values()} == {counts.num_params}
        assert {row.conv_macs for row in rows.values()} == {counts.conv_macs}
        assert {(row.family, row.channels, row.image_channels) for row in rows.values()} == {
            ("ede", plan.channels_str, plan.image_channels)
        }
        assert rows["fp16"].size_bytes < rows["fp32"].size_bytes < rows["fp32, no rewrites"].size_bytes
        assert max(rows[form].parity_max_rel for form in VARIANTS[:2]) <= 1e-4
        assert min(rows[form].parity_max_rel for form in VARIANTS[2:]) > 1e-6


def test_fresh_weights_agree_with_nothing_worth_telling(plans):
    assert all(row.agreement is None for row in plans.models)


def test_the_identity_graph_is_the_measure(plans):
    assert plans.identity_us.keys() == {"1", "3"}
    for row in plans.models:
        floor = plans.identity_us[str(row.image_channels)]
        assert row.times_identity == row.latency_us.median / floor.median
        assert 0 < row.latency_us.p10 <= row.latency_us.median


def test_every_figure_of_one_run_goes_to_its_own_row(monkeypatch):
    """Latencies that say which call they are of."""
    monkeypatch.setattr(module, "PAPER_ARCHITECTURES", PAPER_ARCHITECTURES)
    monkeypatch.setattr(measuring, "identity_model_call", lambda size, channels: ("identity", size, channels))
    monkeypatch.setattr(measuring, "detector_call", lambda detector: detector)
    given = []

    def measure(calls):
        given.extend(calls)
        return [Latency(float(10 + i), float(i)) for i in range(len(calls))]

    monkeypatch.setattr(measuring, "measure_latency", measure)
    report = profile_variants()
    assert given[:2] == [("identity", (16, 16), 1), ("identity", (16, 16), 3)]
    assert [row.latency_us.p10 for row in report.models] == list(range(2, 12))
    assert [row.times_identity for row in report.models[:5]] == [n / 10 for n in range(12, 17)]
    assert [row.times_identity for row in report.models[5:]] == [n / 11 for n in range(17, 22)]
    for row, detector in zip(report.models, given[2:], strict=True):
        assert detector.metadata["channels"] == row.channels
        assert detector.metadata["precision"] == row.variant.partition(",")[0]
        assert (detector.metadata["rewrites"] == "") == (row.variant == "fp32, no rewrites")


def test_a_run_comes_with_its_teacher_and_is_validated_on_its_own_data(of_run, pair):
    names = ["teacher", "student"]
    assert [(row.name, row.variant) for row in of_run.models] == [(name, form) for name in names for form in VARIANTS]
    for name in names:
        rows = variants_of(of_run, name)
        assert (rows["fp32"].agreement, rows["fp32, no rewrites"].agreement) == (None, None)
        for form in ("fp16", "int8"):
            found = rows[form].agreement
            assert found.num_images == 40
            assert found.auc_diff == pytest.approx(found.auc - auc_by_torch(pair / name, pair), abs=1e-6)
            assert 0 <= found.label_agreement <= 1


def auc_by_torch(folder, pair):
    """By the run's generator and scikit-learn; the set's images are of the network's size."""
    import torch

    with np.load(pair / "set.npz") as arrays:
        images, novel = arrays["x_test"], arrays["y_test"] == 1
    generator = load_checkpoint(folder / "model.safetensors").build().generator
    with torch.no_grad():
        scores = generator.anomaly_score(torch.from_numpy(images[:, None] / 127.5 - 1).float()).numpy()
    return roc_auc_score(novel, scores)


def test_a_model_without_a_teacher_is_alone(pair):
    report = profile_variants(pair / "teacher")
    assert [(row.name, row.variant) for row in report.models] == [("teacher", form) for form in VARIANTS]


def test_a_teacher_that_is_named_must_be_there(pair, tmp_path):
    with pytest.raises(KdganError, match="nowhere"):
        profile_variants(pair / "student", tmp_path / "nowhere")
    report = profile_variants(pair / "student", pair / "student" / "model.safetensors")
    assert [row.name for row in report.models] == ["student"] * 10


def test_one_model_against_another(pair):
    report = profile(pair / "student", pair / "teacher")
    student, teacher = report.models
    assert (student.name, teacher.name) == ("student", "teacher")
    found = report.ratios
    assert found.params == teacher.num_params / student.num_params
    assert found.macs == teacher.conv_macs / student.conv_macs > 1
    assert found.bytes == teacher.size_bytes / student.size_bytes > 1
    assert found.latency == teacher.latency_us.p10 / student.latency_us.p10


def test_a_model_without_convolutions_has_no_ratio_of_them():
    one = ModelProfile(10, 0, 5, "a", "own", "own", 1, 100, Latency(9.0, 2.0))
    other = ModelProfile(30, 7, 5, "b", "own", "own", 1, 500, Latency(9.0, 3.0))
    found = ratios(one, other)
    assert (found.params, found.macs, found.bytes, found.latency) == (3, None, 5, 1.5)


def test_fresh_weights_of_an_architecture():
    report = profile(PAPER_ARCHITECTURES[0])
    (row,) = report.models
    assert (row.name, report.ratios) == ("ede 2-4", None)
    assert row.num_params == sum(p.numel() for p in build(PAPER_ARCHITECTURES[0]).generator.parameters())


def test_a_detector_file_is_measured_as_it_is(pair, tmp_path):
    path = tmp_path / "d.onnx"
    assert run(["export", "--model", str(pair / "student"), "-o", str(path), "--rewrites", "none"]) == 0
    (row,) = profile(path).models
    assert (row.name, row.size_bytes) == ("d", path.stat().st_size)
    weights = onnx.load(path).graph.initializer
    assert row.size_bytes > 4 * sum(int(np.prod(weight.dims)) for weight in weights)


def test_the_command(pair, monkeypatch, capsys):
    monkeypatch.setattr(module, "PAPER_ARCHITECTURES", PAPER_ARCHITECTURES)
    assert run(["profile", "--all", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["variant"]) for row in told["models"]][:5] == [("2-4 batch", form) for form in VARIANTS]
    assert run(["profile", "--all", "--model", str(pair / "student")]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert "identity" in header
    assert [line.split()[0] for line in lines[:10]] == ["teacher"] * 5 + ["student"] * 5
    assert "AUC" in header
    assert sum("%" in line for line in lines[:10]) == 6
    assert lines[-2].startswith("teacher: how many times faster than teacher in fp32")
    assert run(["profile", "--all", "--family", "ede"]) == 2
