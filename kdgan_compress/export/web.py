"""A detector as a static web page: the page's own files, the detector, its golden vectors and onnxruntime-web.

The page runs from any file server, offline too: onnxruntime-web is its npm package, fetched once and kept in a cache.
"""

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import atomic_path, unwritable
from kdgan_compress.runtime.seal import OPEN_SEAL, is_intact

ORT_WEB_VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{ORT_WEB_VERSION}"
RUNTIME_FILES = {
    "ort.wasm.min.mjs": "ort.wasm.min.mjs.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.mjs.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
"""What the page loads of the package's ``dist``, and its name there: not every file server knows what ``.mjs`` is."""

PAGE_FOLDER = Path(__file__).with_name("page")
PAGE_FILES = ("app.js", "detector.js", "style.css", "index.html")
MARK = b'<meta name="generator" content="kdgan-compress export --web">'
NPM_SECONDS = 600


def write_page(directory: Path, detector: Path, golden: Path, ort_web: Path | None = None) -> Path:
    """Write a folder that any static file server can serve: open it, drop images, see their scores.

    Args:
        directory: Where to; made if missing. An older page there is replaced.
        detector: An exported ``.onnx`` file.
        golden: The ``golden.json`` written with it.
        ort_web: An unpacked npm package onnxruntime-web or its ``.tgz``. None for the one kept in the user's cache,
            fetched by ``npm pack`` the first time.

    Returns:
        The page, ``directory/index.html``.

    Raises:
        KdganError: The directory holds something else or can't be written; detector and golden vectors are missing or
            don't belong together; onnxruntime-web can't be had. A page that was there stays as it was.
    """
    _check_free(directory)
    page = {name: (PAGE_FOLDER / name).read_bytes() for name in PAGE_FILES[:-1]}
    page["detector.onnx"] = _read(detector, "The detector")
    page["golden.json"] = _read(golden, "The file of golden vectors")
    _check_pair(page["detector.onnx"], page["golden.json"], golden)
    page |= {f"ort/{RUNTIME_FILES.get(name, name)}": content for name, content in _runtime(ort_web).items()}
    page["index.html"] = (PAGE_FOLDER / "index.html").read_bytes()  # last: it is what makes the folder a page
    _write(directory, page)
    return directory / "index.html"


def _check_free(directory: Path) -> None:
    if not directory.exists():
        return
    do = "Choose another folder, or empty this one"
    if not directory.is_dir():
        raise KdganError("The page must go to a folder", f"{directory} is a file", do)
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    ours = {*PAGE_FILES, "detector.onnx", "golden.json", "ort/LICENSE", *(f"ort/{n}" for n in RUNTIME_FILES.values())}
    foreign = sorted(files - ours)
    if files and not foreign and MARK not in _read(directory / "index.html", "The older page"):
        foreign = ["an index.html that is no page of ours"]
    if foreign:
        raise KdganError("The page's folder must be empty or hold an older page", f"{directory} holds {foreign[0]}", do)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        found = f"{path}: {error.strerror or error}"
        raise KdganError(f"{what} must be a file that can be read", found, "Check the path") from None


def _check_pair(model: bytes, golden: bytes, path: Path) -> None:
    do = "Export the detector again and give the golden.json written with it"
    try:
        about = json.loads(golden)
        cases, digest = about["cases"], about["file_sha256"]
    except (ValueError, TypeError, KeyError) as error:
        found = f"{path}: {first_line(error)}"
        raise KdganError("The golden vectors must be JSON with cases and file_sha256", found, do) from None
    if not cases:
        raise KdganError("The golden vectors must hold a case", f"{path} has none", do)
    if len(str(digest)) != len(OPEN_SEAL) or not is_intact(model, str(digest)):
        raise KdganError("The golden vectors must be the detector's own", f"{path} has another file's hash", do)


def _runtime(ort_web: Path | None) -> dict[str, bytes]:
    """The package's files by their names in ``dist``: those given, else kept, else fetched."""
    if ort_web is not None:
        return _read_package(ort_web)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdgan-compress"
    cache /= f"onnxruntime-web-{ORT_WEB_VERSION}"
    if all((cache / "dist" / name).is_file() for name in RUNTIME_FILES):
        return _read_package(cache)
    files = _fetch()
    with suppress(KdganError):  # a home that can't be written to costs the next page a download, no more
        for name, content in files.items():
            with atomic_path(cache / name if name == "LICENSE" else cache / "dist" / name) as temporary:
                temporary.write_bytes(content)
    return files


def _fetch() -> dict[str, bytes]:
    """Let npm fetch the package; nothing is installed and none of its scripts run."""
    must = "The page must have onnxruntime-web, which npm fetches once"
    do = f"Install npm and go online, or give --ort-web with the package from `npm pack {PACKAGE}` on another machine"
    npm = shutil.which("npm")
    if npm is None:
        raise KdganError(must, "found no npm", do)
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=NPM_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KdganError(must, f"npm pack failed: {first_line(error)}", do) from None
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            told = next((line for line in done.stderr.splitlines() if line.strip()), f"exit status {done.returncode}")
            raise KdganError(must, f"npm pack failed: {told}", do)
        return _read_package(archives[0])


def _read_package(package: Path) -> dict[str, bytes]:
    """The needed files of an unpacked package or its archive; its licence if it has one."""
    wanted = {f"dist/{name}": name for name in RUNTIME_FILES} | {"LICENSE": "LICENSE"}
    found: dict[str, bytes] = {}
    try:
        if package.is_dir():
            found = {name: (package / path).read_bytes() for path, name in wanted.items() if (package / path).is_file()}
        else:
            with tarfile.open(package) as archive:
                for member in archive:
                    name = wanted.get("/".join(PurePosixPath(member.name).parts[1:]))
                    content = archive.extractfile(member) if name and member.isfile() else None
                    if name and content:
                        found[name] = content.read()
        lacking = [f"dist/{name}" for name in RUNTIME_FILES if name not in found]
        reason = f"{lacking[0]} is missing" if lacking else ""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = first_line(error)
    if reason:
        raise KdganError(
            "--ort-web must be npm's package onnxruntime-web, unpacked or as .tgz",
            f"{package}: {reason}",
            f"Give the file that `npm pack {PACKAGE}` writes",
        )
    return found


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """Write all files aside within the folder, then move each to its place, in their order."""
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=directory) as aside:
            for name, content in files.items():
                path = Path(aside, name)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            for name in files:
                (directory / name).parent.mkdir(exist_ok=True)
                Path(aside, name).replace(directory / name)
    except OSError as error:
        if made:
            shutil.rmtree(directory, ignore_errors=True)
        raise unwritable(directory, error) from None
