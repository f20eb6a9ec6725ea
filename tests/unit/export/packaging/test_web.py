"""The page's folder without a browser; what the page does is tested in tests/browser."""

import hashlib
import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from kdgan_compress.errors import KdganError
from kdgan_compress.export.packaging import web
from kdgan_compress.export.packaging.web import ORT_WEB_VERSION, write_page
from kdgan_compress.runtime.checksum import CHECKSUM_PLACEHOLDER, write_checksum

RUNTIME = {
    "dist/ort.wasm.min.mjs": b"runtime",
    "dist/ort-wasm-simd-threaded.mjs": b"glue",
    "dist/ort-wasm-simd-threaded.wasm": b"\0asm",
}
EXPECTED = {
    "index.html",
    "app.js",
    "detector.js",
    "overlay.js",
    "style.css",
    "detector.onnx",
    "golden.json",
    "ort/ort.wasm.min.mjs.js",
    "ort/ort-wasm-simd-threaded.mjs.js",
    "ort/ort-wasm-simd-threaded.wasm",
}


def make_package(folder: Path, *, without: str = "") -> Path:
    more = {"dist/ort.all.min.mjs": b"not needed", "package.json": b"{}"}
    for name, content in (RUNTIME | more).items():
        if name != without:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def make_archive(path: Path, package: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(package, "package")
    return path


@pytest.fixture
def package(tmp_path):
    return make_package(tmp_path / "node_modules/onnxruntime-web")


@pytest.fixture
def pair(tmp_path):
    """A file and golden vectors that say they belong to it."""
    return make_pair(tmp_path, b"an ONNX file")


def make_pair(folder: Path, content: bytes) -> tuple[Path, Path]:
    detector, golden = folder / "student.onnx", folder / "student.golden.json"
    complete = write_checksum(content + CHECKSUM_PLACEHOLDER.encode())
    detector.write_bytes(complete)
    golden.write_text(json.dumps({"cases": [{}], "file_sha256": complete[-len(CHECKSUM_PLACEHOLDER) :].decode()}))
    return detector, golden


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test looks into the user's cache or runs npm."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(web.subprocess, "run", lambda *_, **__: pytest.fail("npm was run"))
    return tmp_path / "cache/kdgan-compress" / f"onnxruntime-web-{ORT_WEB_VERSION}"


@pytest.fixture
def npm(monkeypatch, tmp_path, package):
    """An npm that packs the fixture's package; gives the commands it was run with."""
    commands = []

    def run(command, *, cwd, **_):
        commands.append(command)
        make_archive(Path(cwd, "onnxruntime-web.tgz"), package)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(web.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(web.subprocess, "run", run)
    return commands


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def message(error: pytest.ExceptionInfo[KdganError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_folder_holds_page_detector_and_runtime(tmp_path, pair, package):
    detector, golden = pair
    page = write_page(tmp_path / "new/page", detector, golden, package)
    written = files(tmp_path / "new")
    assert page == tmp_path / "new/page/index.html"
    assert set(written) == {f"page/{name}" for name in EXPECTED}
    assert written["page/detector.onnx"] == detector.read_bytes()
    assert written["page/golden.json"] == golden.read_bytes()
    assert written["page/ort/ort.wasm.min.mjs.js"] == b"runtime"
    assert written["page/ort/ort-wasm-simd-threaded.wasm"] == b"\0asm"


def test_an_archive_does_as_well_and_its_licence_comes_along(tmp_path, pair, package):
    (package / "LICENSE").write_text("MIT")
    write_page(tmp_path / "page", *pair, make_archive(tmp_path / "ort.tgz", package))
    assert set(files(tmp_path / "page")) == EXPECTED | {"ort/LICENSE"}
    write_page(tmp_path / "page", *pair, package)


def test_the_page_names_its_own_files_and_no_other_place(tmp_path, pair, package):
    page = tmp_path / "page"
    write_page(page, *pair, package)
    for name in ("index.html", "app.js", "detector.js", "overlay.js", "style.css"):
        text = (page / name).read_text()
        assert not [url for url in re.findall(r"https?://[^'\"\s]+", text) if url != "http://www.w3.org/2000/svg"]
        named = set(re.findall(r"[\"'](?:\./)?([\w/.-]+\.(?:js|css|onnx|json|wasm))[\"']", text))
        assert named <= EXPECTED
    assert web.HTML_MARKER in (page / "index.html").read_bytes()


def test_an_older_page_is_replaced(tmp_path, pair, package):
    page = tmp_path / "page"
    page.mkdir()
    write_page(page, *pair, package)
    (page / "app.js").write_text("older")
    write_page(page, *make_pair(tmp_path, b"another"), package)
    assert set(files(page)) == EXPECTED
    assert (page / "detector.onnx").read_bytes().startswith(b"another")
    assert (page / "app.js").read_text() != "older"


@pytest.mark.parametrize(("name", "told"), [("thesis.tex", "thesis.tex"), ("index.html", "this command did not write")])
def test_a_folder_with_something_else_is_left_alone(tmp_path, pair, package, name, told):
    page = tmp_path / "page"
    page.mkdir()
    (page / name).write_text("precious")
    with pytest.raises(KdganError, match="must be empty or contain an older page") as error:
        write_page(page, *pair, package)
    assert told in message(error)
    assert files(page) == {name: b"precious"}


def test_a_file_is_no_folder(tmp_path, pair, package):
    with pytest.raises(KdganError, match="is a file"):
        write_page(pair[0], *pair, package)


def test_an_error_leaves_no_half_page_and_an_older_one_whole(tmp_path, pair, package, monkeypatch):
    whole, new = tmp_path / "whole", tmp_path / "new"
    write_page(whole, *pair, package)
    before = files(whole)
    write_bytes = Path.write_bytes

    def full_at_last(path, content):
        if path.name == "index.html":
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    other = make_pair(tmp_path, b"another")
    monkeypatch.setattr(Path, "write_bytes", full_at_last)
    for page in (whole, new):
        with pytest.raises(KdganError, match="No space left"):
            write_page(page, *other, package)
    assert files(whole) == before
    assert [path.name for path in whole.iterdir() if path.name.startswith(".")] == []
    assert not new.exists()


def test_detector_and_golden_vectors_must_be_there_and_belong_together(tmp_path, pair, package):
    detector, golden = pair
    page = tmp_path / "page"
    with pytest.raises(KdganError, match="The detector must be a readable file"):
        write_page(page, tmp_path / "missing.onnx", golden, package)
    with pytest.raises(KdganError, match="golden vectors must be a readable file"):
        write_page(page, detector, tmp_path / "missing.json", package)
    for text, told in (
        ("{", "must be JSON"),
        ("[]", "must be JSON"),
        ("{}", "must be JSON"),
        ('{"cases": [], "file_sha256": ""}', "need at least one case"),
        ('{"cases": [1], "file_sha256": ""}', "checksum of another file"),
        (json.dumps({"cases": [1], "file_sha256": "0" * 64}), "checksum of another file"),
    ):
        golden.write_text(text)
        with pytest.raises(KdganError, match=told) as error:
            write_page(page, detector, golden, package)
        assert "golden.json" in message(error)
    assert not page.exists()


def test_the_runtime_is_fetched_once_and_kept(tmp_path, pair, npm, cache, monkeypatch):
    write_page(tmp_path / "first", *pair)
    assert npm == [["/bin/npm", "pack", "onnxruntime-web@1.30.0", *npm[0][3:]]]
    assert "--ignore-scripts" in npm[0]
    assert files(cache) == RUNTIME
    monkeypatch.setattr(web.shutil, "which", lambda _: None)
    write_page(tmp_path / "second", *pair)
    assert len(npm) == 1
    assert files(tmp_path / "second") == files(tmp_path / "first")


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, pair, npm, cache):
    cache.parent.parent.write_text("a file in the way")
    write_page(tmp_path / "page", *pair)
    assert set(files(tmp_path / "page")) == EXPECTED


def test_no_npm(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(web.shutil, "which", lambda _: None)
    with pytest.raises(KdganError, match="npm was not found") as error:
        write_page(tmp_path / "page", *pair)
    assert "--ort-web" in message(error)
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (
            subprocess.CompletedProcess([], 1, "", "\nnpm error code ENOTFOUND\nnpm error more\n"),
            "npm error code ENOTFOUND",
        ),
        (subprocess.CompletedProcess([], 3, "", ""), "exit status 3"),
        (subprocess.CompletedProcess([], 0, "", ""), "exit status 0"),
        (subprocess.TimeoutExpired("npm", 600), "timed out"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_npm_fails(tmp_path, pair, monkeypatch, cache, outcome, told):
    def run(*_, **__):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(web.shutil, "which", lambda name: name)
    monkeypatch.setattr(web.subprocess, "run", run)
    with pytest.raises(KdganError, match="npm pack failed") as error:
        write_page(tmp_path / "page", *pair)
    assert told in message(error)
    assert not (tmp_path / "page").exists()
    assert not cache.exists()


@pytest.mark.parametrize("kind", ["missing", "lacking", "no archive", "cut short"])
def test_another_thing_than_the_package(tmp_path, pair, package, kind):
    given = tmp_path / "given"
    if kind == "lacking":
        make_package(given, without="dist/ort-wasm-simd-threaded.wasm")
    if kind == "no archive":
        given.write_text("hello")
    if kind == "cut short":
        (package / "dist/ort-wasm-simd-threaded.wasm").write_bytes(hashlib.sha512(b"").digest() * 1000)
        given.write_bytes(make_archive(tmp_path / "whole.tgz", package).read_bytes()[:200])
    with pytest.raises(KdganError, match="must be the npm package onnxruntime-web") as error:
        write_page(tmp_path / "page", *pair, given)
    assert str(given) in message(error)
    assert not (tmp_path / "page").exists()
