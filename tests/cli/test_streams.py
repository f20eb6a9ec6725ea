"""Output to a closed, full or narrow stream, and names of any bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DETECTOR = Path(__file__).parents[2] / "exports" / "sneaker-1-2-4" / "sneaker-1-2-4.onnx"
NAMES = (b"a\nb.png", "图片.png".encode(), "\U0001f600.png".encode(), b"raw-\xe9.png", b"z.png")
ESCAPED = (r"a\nb.png", r"\u56fe\u7247.png", r"\U0001f600.png", "raw-é.png", "z.png")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, /dev/full")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    Image.new("L", (32, 32), 99).save(folder / "z.png")
    for name in NAMES:
        (folder / os.fsdecode(name)).write_bytes((folder / "z.png").read_bytes())
    return folder


def score(*arguments, shell=None, **options):
    command = [sys.executable, "-m", "kdgan_compress", "score", DETECTOR, *arguments]
    if shell is not None:
        command = ["sh", "-c", f'"$@" {shell}', "sh", *command]
    return subprocess.run(command, capture_output=True, check=False, **options)


def narrow():
    return {**os.environ, "PYTHONIOENCODING": "cp1252"}


def test_a_code_page_without_the_characters(photos):
    result = score(photos, env=narrow())
    assert result.returncode == 0
    lines = result.stdout.decode("cp1252").splitlines()
    assert sorted(Path(line.split("  ")[-1]).name for line in lines) == sorted(ESCAPED)


@pytest.mark.parametrize("environment", [None, "narrow"])
def test_json_is_valid_whatever_the_names_are(photos, environment):
    result = score(photos, "--json", env=narrow() if environment else None)
    paths = [json.loads(line.decode("utf-8"))["path"] for line in result.stdout.splitlines()]
    assert sorted(os.fsencode(Path(path).name) for path in paths) == sorted(NAMES)


def test_help_in_a_code_page():
    command = [sys.executable, "-m", "kdgan_compress", "distill", "--help"]
    result = subprocess.run(command, capture_output=True, check=False, env=narrow())
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        ("> /dev/full", 1, b"No space left on device"),
        (">&-", 0, b"images"),
        ("2>&-", 0, b""),
        (">&- 2>&-", 0, b""),
        ("2> /dev/full", 1, b""),
        ("| head -n 1 > /dev/null", 0, b""),
    ],
)
def test_streams_that_take_nothing(photos, redirection, code, error):
    result = score(photos, shell=redirection)
    assert b"Traceback" not in result.stderr
    assert (result.returncode, error in result.stderr) == (code, True)


def test_the_reader_of_a_pipe_may_leave(photos):
    shell = "; echo $? >&2; } | head -n 1"
    command = f'{{ "$@" {shell}'
    arguments = [sys.executable, "-m", "kdgan_compress", "score", DETECTOR, *[photos] * 500]
    result = subprocess.run(["sh", "-c", command, "sh", *arguments], capture_output=True, check=False)
    assert result.stderr.split()[-1] == b"0"
    assert len(result.stdout.splitlines()) == 1


def test_an_error_is_one_line(photos):
    result = score("no\nphoto.png")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
