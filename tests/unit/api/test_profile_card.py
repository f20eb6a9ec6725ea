"""Latency on the card: measured in one run, of the right files, replacing what the card said before."""

import json
import shutil

import pytest

from kdgan_compress.api import profile as measuring
from kdgan_compress.api import profile_card as module
from kdgan_compress.api.export import export_detector
from kdgan_compress.api.profile_card import FP32, IDENTITY, TEACHER, THIS_FILE, profile_card
from kdgan_compress.cli.main import run
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import load_checkpoint, save_checkpoint
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.profiling.latency import Latency

pytestmark = pytest.mark.usefixtures("quick_runs", "traced_once")


@pytest.fixture
def fp16(pair, tmp_path):
    """The folder of a student's fp16 detector."""
    export_detector(pair / "student", tmp_path / "fp16" / "s.onnx", settings=ExportSettings("fp16"))
    return tmp_path / "fp16"


def timed(monkeypatch, *microseconds):
    """The medians that are measured next; the identity graph is the first call."""
    monkeypatch.setattr(
        measuring, "measure_latency", lambda calls: [Latency(us, us / 2) for us in microseconds[: len(calls)]]
    )


def medians(result):
    return {row.name: row.latency_us.median for row in result.models}


@pytest.mark.parametrize(("own", "slower"), [(104.0, False), (106.0, True), (20.0, False)])
def test_a_precision_that_is_slower_is_reported(pair, fp16, monkeypatch, capsys, own, slower):
    timed(monkeypatch, 5.0, own, 100.0, 300.0)
    result = profile_card(pair / "student", fp16 / "card.md")
    assert result.slower_than_fp32 is slower
    assert medians(result) == {THIS_FILE: own, FP32: 100.0, TEACHER: 300.0}
    assert result.identity_us == Latency(5.0, 2.5)
    assert run(["profile", "--model", str(pair / "student"), "--card", str(fp16 / "card.md")]) == 0
    assert ("slower than fp32" in capsys.readouterr().out) == slower


def test_each_time_is_that_of_its_own_file(pair, fp16, monkeypatch):
    measured = []

    def measure(calls):
        measured.extend(calls)
        return [Latency(float(i + 1), 1.0) for i in range(len(calls))]

    monkeypatch.setattr(measuring, "detector_call", lambda detector: detector)
    monkeypatch.setattr(measuring, "identity_model_call", lambda size, channels: (size, channels))
    monkeypatch.setattr(measuring, "measure_latency", measure)
    result = profile_card(pair / "student", fp16 / "card.md")
    assert measured[0] == ((16, 16), 1)
    files = [(each.metadata["precision"], each.metadata["channels"]) for each in measured[1:]]
    assert files == [("fp16", "1-2"), ("fp32", "1-2"), ("fp32", "4-8")]
    assert (list(medians(result).values()), result.identity_us.median) == ([2.0, 3.0, 4.0], 1.0)


def test_the_card_gets_the_measurement_and_nothing_else_changes(pair, fp16, monkeypatch):
    before = (fp16 / "card.md").read_text()
    files = {path.name: path.read_bytes() for path in fp16.iterdir() if path.name != "card.md"}
    monkeypatch.setattr(module, "machine_name", lambda: "a machine")
    timed(monkeypatch, 5.0, 20.0, 40.0, 80.0)
    for _ in range(2):
        profile_card(pair / "student", fp16 / "card.md")
    after = (fp16 / "card.md").read_text()
    section = after.split("## Latency\n\n")[1].split("\n\n## ")[0]
    assert section.splitlines()[2:] == [
        f"| {THIS_FILE} | 20.0 | 10.0 |  |",
        f"| {FP32} | 40.0 | 20.0 | 2.0 times as long |",
        f"| {TEACHER} | 80.0 | 40.0 | 4.0 times as long |",
        f"| {IDENTITY} | 5.0 | 2.5 | 1/4.0 of it |",
        "",
        "Measured in one run on a machine, 1 thread; other machines differ.",
    ]
    old = before.split("## Latency\n\n")[1].split("\n\n## ")[0]
    assert after.replace(section, old) == before
    assert files == {path.name: path.read_bytes() for path in fp16.iterdir() if path.name != "card.md"}


def test_a_teacher_that_is_gone_is_not_measured(pair, tmp_path, monkeypatch):
    timed(monkeypatch, 1.0, 2.0, 3.0)
    shutil.copytree(pair / "teacher", tmp_path / "gone")
    student = load_checkpoint(pair / "student" / "model.safetensors")
    student.provenance["teacher"] = str(tmp_path / "gone")
    save_checkpoint(tmp_path / "student.safetensors", student)
    export_detector(tmp_path / "student.safetensors", tmp_path / "a" / "s.onnx")
    model, card = tmp_path / "student.safetensors", tmp_path / "a" / "card.md"
    assert list(medians(profile_card(model, card))) == [THIS_FILE, TEACHER]
    (tmp_path / "gone" / "model.safetensors").write_bytes(b"junk")
    assert list(medians(profile_card(model, card))) == [THIS_FILE]
    with pytest.raises(KdganError):
        profile_card(model, card, against=tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    assert list(medians(profile_card(model, card))) == [THIS_FILE]
    assert list(medians(profile_card(model, card, against=pair / "teacher"))) == [THIS_FILE, TEACHER]


def test_a_model_trained_alone_has_no_teacher(pair, tmp_path, monkeypatch):
    timed(monkeypatch, 1.0, 2.0)
    export_detector(pair / "teacher", tmp_path / "t.onnx")
    result = profile_card(pair / "teacher", tmp_path / "card.md")
    assert (list(medians(result)), result.slower_than_fp32) == ([THIS_FILE], None)


def test_the_detector_itself_may_be_the_model(pair, fp16, monkeypatch):
    timed(monkeypatch, 1.0, 2.0, 3.0)
    assert list(medians(profile_card(fp16 / "s.onnx", fp16 / "card.md"))) == [THIS_FILE]
    both = profile_card(fp16 / "s.onnx", fp16 / "card.md", against=pair / "teacher")
    assert list(medians(both)) == [THIS_FILE, TEACHER]


def test_fp32_has_the_same_inputs_and_outputs(pair, tmp_path, monkeypatch):
    io = IOSpec("float", (20, 24), 1, True, True)
    path = tmp_path / "s.onnx"
    export_detector(pair / "student", path, settings=ExportSettings("fp16", io=io))
    measured = []
    monkeypatch.setattr(measuring, "detector_call", lambda detector: measured.append(detector))
    timed(monkeypatch, 1.0, 2.0, 3.0, 4.0)
    profile_card(pair / "student", tmp_path / "card.md")
    lossy, exact, _ = measured
    assert (lossy.input, lossy.image_shape, lossy.outputs) == (exact.input, exact.image_shape, exact.outputs)


def test_what_does_not_belong_together_is_refused(pair, fp16, tmp_path):
    before = (fp16 / "card.md").read_bytes()
    (tmp_path / "notes.md").write_text("# notes\n")
    (tmp_path / "bytes.md").write_bytes(b"\xff\xfe")
    (tmp_path / "card.md").write_bytes(before)
    for model, card, words in (
        (pair / "teacher", fp16 / "card.md", "must belong to a detector of this model"),
        (pair / "student", tmp_path / "notes.md", "must be a model card"),
        (pair / "student", tmp_path / "bytes.md", "must be a readable text file"),
        (pair / "student", tmp_path / "none.md", "must be a readable text file"),
        (pair / "student", tmp_path / "card.md", "The detector must be a file"),
        (tmp_path / "other.onnx", fp16 / "card.md", "must describe this detector"),
    ):
        with pytest.raises(KdganError, match=words) as caught:
            profile_card(model, card)
        assert "\n" not in str(caught.value)
    assert (fp16 / "card.md").read_bytes() == before


def test_the_command(pair, fp16, monkeypatch, capsys):
    timed(monkeypatch, 1.0, 2.0, 4.0, 6.0)
    command = ["profile", "--model", str(pair / "student"), "--card", str(fp16 / "card.md")]
    assert run([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in printed["models"]] == [THIS_FILE, FP32, TEACHER]
    assert (printed["card"], printed["threads"]) == (str(fp16 / "card.md"), 1)
    assert run(command) == 0
    assert "2.00 times this file's" in capsys.readouterr().out
    assert run(["profile", "--card", "card.md"]) == 2
    assert run([*command, "--all"]) == 2
