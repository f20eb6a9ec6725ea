"""The demo's output folder: a marker file tells a folder that an earlier demo began from one with other files."""

from pathlib import Path

from kdgan_compress.errors import KdganError
from kdgan_compress.files import atomic_path

MARKER = "demo.txt"
TEXTS = {
    True: "A folder of kdgan-compress demo --quick.\n",
    False: "A folder of kdgan-compress demo.\n",
}


def check_demo_folder(out: Path, quick: bool) -> None:
    """Check that a demo can start in this folder, or continue there.

    Raises:
        KdganError: The folder has files that are not a demo's, or a demo with or without ``quick``.
    """
    marker = out / MARKER
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not marker.is_file():
        raise KdganError("The demo needs a new folder", f"found files in {out}", "Remove it, or give another --out")
    if marker.read_text(encoding="utf-8") != TEXTS[quick]:
        kind, other = ("full", "quick") if quick else ("quick", "full")
        raise KdganError(
            f"A {other} demo cannot continue a {kind} one", f"got {out}", "Remove it, or give another --out"
        )


def mark_demo_folder(out: Path, quick: bool) -> None:
    """Create the folder with its marker.

    Raises:
        KdganError: As ``check_demo_folder``, or the folder can't be written.
    """
    check_demo_folder(out, quick)
    with atomic_path(out / MARKER) as temporary:
        temporary.write_text(TEXTS[quick], encoding="utf-8")
