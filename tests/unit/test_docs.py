"""What the documents show works: their code runs, their names exist."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import kdgan_compress
from kdgan_compress.cli import main
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.gans import Architecture, build, check_gan
from kdgan_compress.runtime import Detector

ROOT = Path(__file__).parents[2]


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_file_of_the_own_gan_is_short_and_builds_teachers_and_students() -> None:
    (code,) = python_blocks("docs/own-gan.md")
    assert len([line for line in code.splitlines() if line.strip()]) < 45
    namespace: dict[str, Any] = {}
    exec(compile(code, "docs/own-gan.md", "exec"), namespace)
    for channels in ((64, 128, 256), (2, 4, 8)):
        architecture = Architecture(channels=channels)
        check_gan(namespace["build"](architecture), architecture)


def test_the_lines_for_the_device_score_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    architecture = Architecture(channels=(1, 2, 4), image_channels=3)
    write_detector(Path("student.onnx"), build(architecture).generator, architecture, 0.5, "a guess")
    Image.new("RGB", (50, 40), (200, 100, 0)).save("photo.jpg")
    namespace: dict[str, object] = {}
    exec(compile(python_blocks("docs/photos.md")[0], "docs/photos.md", "exec"), namespace)
    score, is_anomaly = Detector("student.onnx").score_file("photo.jpg")
    assert namespace["score"] == pytest.approx([score])
    assert namespace["is_anomaly"] == [is_anomaly]


def test_the_python_api_of_the_readme_exists() -> None:
    (code,) = python_blocks("README.md")
    assert len(code.splitlines()) <= 10
    used = set(re.findall(r"kc\.(\w+)", code))
    assert all(callable(getattr(kdgan_compress, name)) for name in used)
    assert used <= set(dir(kdgan_compress))


def test_every_command_line_of_the_documents_is_one_the_program_has() -> None:
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    commands = re.findall(r"(?:^ +|`)kdgan-compress ([a-z]+)", text, re.MULTILINE)
    assert {"train", "distill", "evaluate", "profile", "export", "score"} <= set(commands) <= set(main.COMMANDS)
    options = re.findall(r"`(--[a-z0-9-]+)", text)
    params = [param for name in main.COMMANDS for param in main.cli.get_command(None, name).params]
    known = {opt for param in params for opt in (*param.opts, *param.secondary_opts)}
    assert set(options) <= known


def test_every_link_between_documents_resolves() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        targets = re.findall(r"\]\(([^)#\s]+)", prose)
        missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
        assert not missing, page


def test_the_readme_fits_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        kdgan_compress.nonsense  # noqa: B018
