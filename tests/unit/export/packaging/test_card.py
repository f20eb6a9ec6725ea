"""The card: its figures are the report's, its lines run and give the detector's scores."""

import contextlib
import dataclasses
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from tile_detector import write_tile_detector
from tiny_graphs import architecture, generator_of, photos

from kdgan_compress.errors import KdganError
from kdgan_compress.export.detector_file import ExportReport, write_detector
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.packaging import card as cards
from kdgan_compress.export.packaging import card_update
from kdgan_compress.export.packaging.call_examples import LANGUAGES, InputSpec
from kdgan_compress.export.packaging.mobile import MobileCheck
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ValidationData
from kdgan_compress.export.validation.golden import make_golden
from kdgan_compress.profiling.latency import Latency
from kdgan_compress.runtime import Detector

pytestmark = pytest.mark.usefixtures("quick")

THRESHOLD = 1.2345678
INPUT_SIZE = (24, 40)
KINDS = [
    (channels, kind, input_size)
    for channels in (1, 3)
    for kind in ("uint8", "float")
    for input_size in (None, INPUT_SIZE)
]
DATA = cards.ModelCardData(
    trained_on="mnist, normal 8",
    teacher="big-one",
    auc=0.98765,
    mobile_checks=None,
    card="card.md",
    files={"card.md": "this card", "golden.npz": "golden vectors"},
)
LATENCIES = {"this file": Latency(20.0, 18.5), "its teacher": Latency(118.0, 110.0), "nothing": Latency(5.0, 4.0)}


def export(path, channels=1, kind="uint8", input_size=None, validation=None, **settings):
    described = architecture(image_channels=channels)
    io = IOSpec(kind, input_size, **settings.pop("io", {}))
    return write_detector(
        path,
        generator_of(described),
        described,
        THRESHOLD,
        "99 % of the normals",
        ExportSettings(io=io, **settings),
        x_hat="decoder" if io.reconstruction or io.anomaly_map else None,
        validation=validation,
    )


def card_of(path, report, data=DATA):
    detector = Detector(path)
    return cards.write_card(path.name, detector, report, data, make_golden(detector))


def blocks(text):
    """The code of each language."""
    found = re.findall(r"^(\S+):\n\n```(\w+)\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    return {language: code for language, _, code in found}


def rows(text):
    """The first table, key to value."""
    table = text.split("## Input and output")[0]
    return dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", table, re.MULTILINE))


@pytest.fixture(scope="module")
def made(quick, tmp_path_factory):
    """Path, report and card of a detector of each kind."""
    folder = tmp_path_factory.mktemp("cards")
    found = {}
    for number, kind in enumerate(KINDS):
        path = folder / str(number) / "student.onnx"
        report = export(path, *kind)
        found[kind] = path, report, card_of(path, report)
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_lines_in_python_give_the_detectors_score(made, kind, tmp_path, monkeypatch):
    path, _, text = made[kind]
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    (pixels,) = photos(1, 31, 22, 3)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    code, printed, names = blocks(text)["Python"], io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    score, is_anomaly = Detector(path).score_file(tmp_path / "photo.jpg")
    assert names["score"][0] == pytest.approx(score, rel=1e-5)
    assert printed.getvalue() == f"{names['score'][0]!s} {is_anomaly}\n"
    sideways = Detector(path).score(np.asarray(Detector(path).read(tmp_path / "photo.jpg"))[None, ::-1])
    assert abs(sideways.score[0] - score) > 1e-3 * score  # or the photo would tell nothing about turning


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_shape_and_type_in_every_language(made, kind):
    channels, input_kind, input_size = kind
    path, _, text = made[kind]
    (image,) = Detector(path).session.get_inputs()
    free = {"H": "height", "W": "width", "N": 1}
    shape = [str(free.get(length, length)) for length in image.shape]
    assert all(length in free or length in (channels, *(input_size or ())) for length in image.shape)
    code = blocks(text)
    assert code.keys() == {"Python", "C++", "Kotlin", "Swift", "JavaScript"} == LANGUAGES.keys()
    joined = ", ".join(shape)
    as_bytes = input_kind == "uint8"
    assert image.type == ("tensor(uint8)" if as_bytes else "tensor(float)")
    assert f"shape{{{joined}}}" in code["C++"]
    assert f"CreateTensor<{'uint8_t' if as_bytes else 'float'}>" in code["C++"]
    assert f"std::vector<{'uint8_t' if as_bytes else 'float'}> pixels" in code["C++"]
    assert f"[{joined}]" in code["Swift"]
    assert f"elementType: {'.uInt8' if as_bytes else '.float'}," in code["Swift"]
    assert f'new ort.Tensor("{"uint8" if as_bytes else "float32"}", pixels, [{joined}])' in code["JavaScript"]
    assert ("Uint8Array" if as_bytes else "Float32Array") in code["JavaScript"]
    longs = re.search(r"longArrayOf\((.*)\)(, OnnxJavaType\.UINT8)?\)", code["Kotlin"])
    assert longs[1].replace(".toLong()", "") == joined
    assert bool(longs[2]) == as_bytes
    assert ("ByteBuffer" if as_bytes else "FloatBuffer") in code["Kotlin"]
    for language in ("Python", "C++", "Kotlin", "JavaScript"):
        assert '"student.onnx"' in code[language]
    assert 'forResource: "student", ofType: "onnx"' in code["Swift"]
    assert all('"score"' in code[language] for language in ("Python", "C++", "Kotlin", "Swift"))
    order = "row by row" + ("" if channels == 1 else ", each pixel red, green, blue" if as_bytes else "")
    size = "24×40" if input_size else "height × width"
    for language in ("C++", "Kotlin", "Swift", "JavaScript"):
        assert order in code[language]
        assert f"{size} {'bytes' if as_bytes else 'floats from 0 to 1'}" in code[language]
    swift = float(re.search(r"isAnomaly = score > (\S+)", code["Swift"])[1])
    assert np.float32(swift) == np.float32(THRESHOLD)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_input_and_outputs_are_the_files_own(made, kind):
    channels, input_kind, input_size = kind
    _, _, text = made[kind]
    section = text.split("## Input and output")[1].split("## ")[0]
    shape = ["N", *(input_size or ("H", "W"))]
    shape.insert(3 if input_kind == "uint8" else 1, channels)
    told = "uint8, 0 to 255" if input_kind == "uint8" else "float32, 0 to 1"
    assert f"| in | `image` | {told} | ({', '.join(map(str, shape))}) |" in section
    outputs = re.findall(r"^\| out \| `(\w+)` \| (\w+) \| \((\w+)\) \|$", section, re.MULTILINE)
    assert outputs == [("score", "float32", "N"), ("is_anomaly", "bool", "N")]
    assert ("resizes to 16×16 itself" in section) == (input_size is None)
    assert ("Resize images to 24×40" in section) == (input_size is not None)
    assert ("Grey is L" in section) == (channels == 1)
    assert ("R, G, B" in section.splitlines()[-3] + section.splitlines()[-2]) == (channels == 3) or channels == 1


def test_maps_are_among_the_outputs(tmp_path):
    path = tmp_path / "student.onnx"
    report = export(path, 3, io={"batch_size": 1, "reconstruction": True, "anomaly_map": True})
    section = card_of(path, report).split("## Input and output")[1].split("## ")[0]
    assert "| out | `reconstruction` | uint8 | (1, 16, 16, 3) |" in section
    assert "| out | `anomaly_map` | float32 | (1, 16, 16) |" in section
    assert "| in | `image` | uint8, 0 to 255 | (1, H, W, 3) |" in section


def test_figures_are_the_reports(made):
    path, report, text = made[KINDS[0]]
    detector = Detector(path)
    told = rows(text)
    assert text.startswith("# student.onnx\n")
    assert "distilled from the teacher `big-one`" in text
    assert "Trained on mnist, normal 8" in text
    assert told["AUC"] == "98.77 % on the test split"
    assert told["precision"] == "fp32"
    assert told["file size"] == f"{path.stat().st_size:,} bytes"
    assert told["threshold"] == "1.23457: 99 % of the normals"
    assert told["parameters of the model"] == f"{int(detector.metadata['num_params']):,}"
    assert told["largest difference from torch"] == f"{report.parity_max_rel:.1e} relative"
    made_rewrites = [name for name, number in report.rewrites.items() if number]
    assert told["rewrites"] == ", ".join(made_rewrites)
    assert "batch-norm" in made_rewrites
    assert told["opset, versions"].startswith("18; kdgan-compress ")
    assert told.keys().isdisjoint({"latent", "compared with fp32"})
    assert "On a phone" not in text
    assert detector.metadata["file_sha256"] in text
    assert detector.metadata["weights_sha256"] in text
    assert "`kdgan-compress verify student.onnx`" in text
    assert "- `student.onnx`: the detector\n- `card.md`: this card\n- `golden.npz`: golden vectors\n" in text


def test_the_count_of_numbers_is_that_of_the_graph(made):
    import onnx

    path, _, text = made[KINDS[0]]
    weights = onnx.load(path).graph.initializer
    assert rows(text)["values stored in the file"] == f"{sum(int(np.prod(weight.dims)) for weight in weights):,}"


def test_latency_is_not_measured_by_the_export(made):
    _, _, text = made[KINDS[0]]
    section = text.split("## Latency")[1].split("## ")[0]
    assert section.startswith("\n\nNot measured.")
    assert "\n    kdgan-compress profile --model student.onnx --card card.md\n" in section


def test_measured_latency_is_compared_with_this_files(made):
    _, _, text = made[KINDS[0]]
    before = text
    text = cards.replace_latency(text, LATENCIES, "a slow machine")
    table = text.split("## Latency")[1].split("## ")[0]
    found = re.findall(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \| (.*) \|$", table, re.MULTILINE)
    assert found == [
        ("this file", "20.0", "18.5", ""),
        ("its teacher", "118.0", "110.0", "5.9 times as long"),
        ("nothing", "5.0", "4.0", "1/4.6 of it"),
    ]
    assert "Measured in one run on a slow machine, 1 thread; other machines differ." in table
    assert "Not measured" not in text
    assert [part.split("\n")[0] for part in text.split("\n## ")] == [
        part.split("\n")[0] for part in before.split("\n## ")
    ]


def test_a_later_measurement_replaces_the_earlier_one(made):
    _, _, text = made[KINDS[0]]
    once = cards.replace_latency(text, LATENCIES, "a slow machine")
    twice = cards.replace_latency(once, {"this file": Latency(7.0, 6.0)}, "a fast machine", 2)
    assert "a slow machine" not in twice
    assert "a fast machine, 2 threads" in twice
    assert cards.replace_latency(twice, LATENCIES, "a slow machine") == once
    last = once[: once.index("\n\n## Files")] + "\n"  # a card whose last section it is
    assert cards.replace_latency(last, LATENCIES, "a slow machine") == last


def test_a_card_names_its_detector(made):
    _, _, text = made[KINDS[0]]
    assert card_update.read_detector_name(text) == "student.onnx"
    for other in ("", "# student\n\n## Latency\n", "# ../student.onnx\n\n## Latency\n", "# student.onnx\n"):
        with pytest.raises(KdganError, match="must be a model card"):
            card_update.read_detector_name(other)


def test_what_is_not_exact_is_held_against_fp32(tmp_path):
    path = tmp_path / "student.onnx"
    normals, novel = photos(40, 16, 16, 1, seed=1), photos(10, 16, 16, 1, seed=2)
    validation = ValidationData(normals, normals, np.concatenate([normals[:10], novel]), np.repeat([False, True], 10))
    report = export(path, validation=validation, precision="fp16")
    told = rows(card_of(path, report, dataclasses.replace(DATA, auc=report.agreement.auc)))
    found = report.agreement
    assert told["precision"] == "fp16"
    assert told["AUC"] == f"{100 * found.auc:.2f} % on the test split"
    assert told["compared with fp32"] == (
        f"AUC {found.auc_diff:+.4f}, {100 * found.label_agreement:.2f} % of decisions equal, "
        f"Spearman {found.spearman:.4f}, on 20 images"
    )
    assert told["threshold"].endswith(": 0.99 quantile of 40 normal images' scores")
    assert "may differ by 0.02 relative" in card_of(path, report)


def test_without_labels_teacher_or_rewrites(tmp_path):
    path = tmp_path / "student.onnx"
    data = dataclasses.replace(DATA, auc=None, teacher=None)
    text = card_of(path, export(path, rewrites=frozenset()), data)
    assert rows(text)["AUC"] == "not measured: no labelled images"
    assert rows(text)["rewrites"] == "none"
    assert "teacher `" not in text


def test_the_checkers_verdicts_before_and_after(made):
    path, report, _ = made[KINDS[0]]
    before, after = MobileCheck("NNAPI", "NO", 3, 9, 4, ["Resize"]), MobileCheck("NNAPI", "YES", 9, 9, 1, [])
    text = card_of(path, report, dataclasses.replace(DATA, mobile_checks=([before], [after])))
    row = "| NNAPI | NO (3 of 9 nodes in 4 parts, without Resize) | YES (9 of 9 nodes in 1 part) |"
    assert row in text.split("## On a phone")[1]


STUB = """\
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>
#define ORT_TSTR(text) text
struct OrtMemoryInfo;
enum OrtAllocatorType { OrtDeviceAllocator, OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING };
namespace Ort {
struct Env { explicit Env(OrtLoggingLevel = ORT_LOGGING_LEVEL_WARNING, const char* = "") {} };
struct SessionOptions {};
struct RunOptions { RunOptions(std::nullptr_t) {} };
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType) { return {}; }
  operator OrtMemoryInfo*() const { return nullptr; }
};
struct Value {
  template <typename T>
  static Value CreateTensor(const OrtMemoryInfo*, T*, size_t, const int64_t*, size_t) {
    static_assert(std::is_same_v<T, PIXEL>);
    return {};
  }
  template <typename T> const T* GetTensorData() const { return nullptr; }
};
struct Session {
  Session(const Env&, const char*, const SessionOptions&) {}
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, size_t, const char* const*, size_t) {
    return {};
  }
};
}
"""
"""ONNX Runtime's C++ header as far as the card uses it; signatures as in onnxruntime_cxx_api.h."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize(
    ("channels", "kind", "input_size"), [(1, "uint8", None), (3, "float", INPUT_SIZE), (3, "float", None)]
)
def test_the_lines_in_cpp_compile(tmp_path, channels, kind, input_size):
    code = LANGUAGES["C++"][1](InputSpec("student.onnx", channels, kind == "uint8", input_size, THRESHOLD))
    pixel = re.search(r"std::vector<(\w+)> pixels", code)[1]
    (tmp_path / "onnxruntime_cxx_api.h").write_text(STUB.replace("PIXEL", pixel))
    includes = [line for line in code.splitlines() if line.startswith("#")]
    body = [line for line in code.splitlines() if not line.startswith("#")]
    around = f"int main() {{ const int height = 3, width = 4; std::vector<{pixel}> pixels(height * width);"
    end = "return is_anomaly || score > 0; }"
    (tmp_path / "main.cpp").write_text("\n".join([*includes, around, *body, end]) + "\n")
    flags = ["-fsyntax-only", "-std=c++17", "-Wall", "-Werror", "-I", tmp_path]
    done = subprocess.run(["g++", *flags, tmp_path / "main.cpp"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


ORT_WEB = """\
export class Tensor {
  constructor(type, data, dims) { Object.assign(this, { type, data, dims }); }
}
export const InferenceSession = {
  async create(file) {
    return {
      async run(feeds) {
        const { type, data, dims } = feeds.image;
        const kind = data.constructor.name;
        console.log(JSON.stringify({ file, names: Object.keys(feeds), type, kind, numbers: data.length, dims }));
        return { score: { data: new Float32Array([0.5]) }, is_anomaly: { data: new Uint8Array([1]) } };
      },
    };
  },
};
"""
"""A package that tells how it was called."""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
@pytest.mark.parametrize(("channels", "kind", "input_size"), [(1, "uint8", None), (3, "float", INPUT_SIZE)])
def test_the_lines_in_javascript_run(tmp_path, channels, kind, input_size):
    code = LANGUAGES["JavaScript"][1](InputSpec("student.onnx", channels, kind == "uint8", input_size, THRESHOLD))
    package = tmp_path / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "onnxruntime-web", "type": "module", "exports": "./index.js"}')
    (package / "index.js").write_text(ORT_WEB)
    array = "Uint8Array" if kind == "uint8" else "Float32Array"
    height, width = input_size or (24, 40)
    names = f"const height = 24, width = 40, pixels = new {array}({height * width * channels});\n"
    module = tmp_path / "call.mjs"
    module.write_text(code)
    subprocess.run(["node", "--check", module], check=True, capture_output=True, timeout=60)
    module.write_text(code.replace("// pixels", names + "// pixels"))
    done = subprocess.run(["node", module], capture_output=True, text=True, timeout=60, check=True)
    called, printed = done.stdout.splitlines()
    dims = [1, 24, 40, channels] if kind == "uint8" else [1, channels, 24, 40]
    type_name = "uint8" if kind == "uint8" else "float32"
    assert called == (
        f'{{"file":"student.onnx","names":["image"],"type":"{type_name}","kind":"{array}",'
        f'"numbers":{24 * 40 * channels},"dims":{str(dims).replace(" ", "")}}}'
    )
    assert printed == "0.5 true"


def test_the_card_of_a_detector_of_tiles_says_what_its_map_means(tmp_path):
    counts = dict.fromkeys(("num_params", "num_weights", "conv_macs"), "1")
    path = write_tile_detector(tmp_path / "t.onnx", np.zeros((96, 128, 1)), 4.0, **counts, rewrites="", versions="")
    detector = Detector(path)
    report = ExportReport("t.onnx", "fp32", 1, 18, 4.0, "a guess", 0.0, {})
    text = cards.write_card("t.onnx", detector, report, DATA, make_golden(detector))
    assert "the file resizes to 96×128 itself" in text
    assert "The photo is scored in tiles of 8×8." in text
    assert "`anomaly_map` is in units of the score: values above the threshold are defects." in text
    assert "| out | `anomaly_map` | float32 | (N, 96, 128) |" in text
