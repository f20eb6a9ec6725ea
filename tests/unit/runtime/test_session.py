"""One place for ONNX Runtime sessions, which leaves neither telemetry nor a changed environment behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from brightness import brightness, write_brightness

import kdgan_compress
from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.session import TELEMETRY_VARIABLE, create_session, usable_threads

PACKAGE = Path(kdgan_compress.__file__).parent


def python_files() -> dict[str, str]:
    return {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}


def test_sessions_are_created_in_one_module() -> None:
    # The model card's example code is a string that calls ``InferenceSession("...``.
    used = [name for name, text in python_files().items() for _ in re.findall(r"InferenceSession\((?!\")", text)]
    assert used == ["runtime/session.py"]


def test_onnxruntime_is_first_imported_there() -> None:
    pattern = r"^(?:import onnxruntime\b|from onnxruntime import|from onnxruntime\.capi)"
    files = {name: text for name, text in python_files().items() if not name.endswith("call_examples.py")}
    at_top = [name for name, text in files.items() if re.search(pattern, text, re.MULTILINE)]
    inside = [name for name, text in files.items() if re.search(r"^ +import onnxruntime\b", text, re.MULTILINE)]
    assert (at_top, inside) == ([], ["runtime/session.py"])


def test_a_session_scores_with_the_given_number_of_threads(tmp_path: Path) -> None:
    path = write_brightness(tmp_path / "d.onnx")
    image = np.full((1, 3, 4, 1), 7, np.uint8)
    for model in (path, str(path), path.read_bytes()):
        session = create_session(model, threads=2)
        assert session.run(["score"], {"image": image})[0] == [7]
        options = session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
        assert session.get_providers() == ["CPUExecutionProvider"]


def test_threads_are_limited_to_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert [usable_threads(number) for number in (1, 2, 3, 4, 10**9)] == [1, 2, 3, 3, 3]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert [usable_threads(number) for number in (1, 2, 3)] == [1, 2, 2]
    with pytest.raises(KdganError, match="at least 1; got 0"):
        usable_threads(0)


def test_a_model_that_cannot_be_loaded_is_reported() -> None:
    model = brightness(1, 0.5)
    model.graph.node[0].op_type = "Nonsense"
    for content in (b"junk", model.SerializeToString()):
        with pytest.raises(KdganError, match="ONNX Runtime cannot load the model; ") as caught:
            create_session(content)
        assert "\n" not in str(caught.value)


CODE = """
import os
before = dict(os.environ)
import kdgan_compress
assert dict(os.environ) == before
from kdgan_compress import Detector
{first}
Detector({path!r}).score_file({photo!r})
assert dict(os.environ) == before, set(os.environ) ^ set(before)
"""


@pytest.mark.parametrize("first", ["", "from kdgan_compress.export.detector_file import write_detector"])
def test_nothing_is_written_to_the_users_cache_and_the_environment_stays(tmp_path: Path, first: str) -> None:
    from PIL import Image

    path = write_brightness(tmp_path / "d.onnx")
    Image.new("L", (8, 6), 90).save(tmp_path / "photo.png")
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != TELEMETRY_VARIABLE}
    environment |= {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "MPLCONFIGDIR": str(tmp_path),
        "PYTHONPATH": str(PACKAGE.parent),
    }
    code = CODE.format(first=first, path=str(path), photo=str(tmp_path / "photo.png"))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [each for each in home.rglob("*") if "Microsoft" in each.parts or "onnxruntime" in each.name] == []


def test_the_users_own_choice_is_kept(tmp_path: Path) -> None:
    code = f"import os; import kdgan_compress.runtime; print(os.environ[{TELEMETRY_VARIABLE!r}])"
    environment = os.environ | {TELEMETRY_VARIABLE: "0", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(PACKAGE.parent)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
