"""Names of the files next to a detector; imports neither torch nor onnx."""

import json
from pathlib import Path


def golden_sidecar(detector: Path) -> Path:
    """Path of a detector's golden vectors: ``NAME.golden.npz`` if it exists, else the folder's ``golden.npz``."""
    return _sidecar(detector, "golden.npz")


def card_sidecar(detector: Path) -> Path:
    """Path of a detector's model card: ``NAME.card.md`` if it exists, else the folder's ``card.md``."""
    return _sidecar(detector, "card.md")


def sidecar_prefix(path: Path) -> str:
    """What the names of card and golden vectors begin with: the detector's name if the folder has another detector."""
    if path.with_name(f"{path.stem}.golden.npz").exists():
        return f"{path.stem}."  # ``golden_sidecar`` prefers this file, so it must be replaced
    try:
        owner = json.loads(path.with_name("golden.json").read_text(encoding="utf-8"))["detector"]
        return f"{path.stem}." if owner != path.name and path.with_name(owner).exists() else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # no golden.json that names its detector


def _sidecar(detector: Path, name: str) -> Path:
    named = detector.with_name(f"{detector.stem}.{name}")
    return named if named.exists() else detector.with_name(name)
