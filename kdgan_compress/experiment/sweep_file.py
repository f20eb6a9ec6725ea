"""``sweep.yaml``: what a sweep's folder says about its cells, as far as a report needs it."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import read_text

SWEEP_FILE = "sweep.yaml"
MAX_SWEEP_BYTES = 10_000_000


class _Entry(BaseModel):
    """A mapping that may have more keys, which later versions add."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ReportLayout(_Entry):
    """How a report arranges the cells.

    Attributes:
        rows: Axes of the rows.
        columns: Axes of the columns; all other axes are averaged over.
        paper: The paper's figures: ``auc`` and the values of the axes that it belongs to.
    """

    rows: list[str] = []
    columns: list[str] = []
    paper: list[dict[str, Any]] = []


class CellEntry(_Entry):
    """One trained model: its run folder and teacher, relative to the sweep's folder, and its value on each axis."""

    run: str
    teacher: str | None = None
    axes: dict[str, Any] = {}


class SweepFile(_Entry):
    """The content of ``sweep.yaml``; ``variant`` is ``quick`` or ``full``."""

    name: str
    description: str = ""
    variant: str = ""
    axes: dict[str, list[Any]] = {}
    report: ReportLayout = ReportLayout()
    cells: list[CellEntry] = []


def read_sweep_yaml(path: Path) -> Any:
    """The content of a ``sweep.yaml``, which has thousands of cells at most.

    Raises:
        OSError: The file can't be read.
        ValueError: It is too large or not YAML.
    """
    text = read_text(path, MAX_SWEEP_BYTES)
    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML's constructors raise anything
        raise ValueError(f"it is not YAML: {first_line(error)}") from None


def load_sweep(folder: Path) -> SweepFile | None:
    """Read a sweep's file; None for a folder without one.

    Raises:
        KdganError: The file is damaged, or a row or column is not an axis.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        return None
    try:
        sweep = SweepFile.model_validate(read_sweep_yaml(path))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the file"
        raise _damaged(path, f"{where}: {error.errors()[0]['msg']}") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, first_line(error)) from None
    for axis in (*sweep.report.rows, *sweep.report.columns):
        if axis not in sweep.axes:
            raise _damaged(path, f"{axis} is not an axis of {', '.join(sweep.axes) or 'it'}")
    if any(not isinstance(entry.get("auc"), int | float) for entry in sweep.report.paper):
        raise _damaged(path, "a figure of the paper has no auc")
    return sweep


def _damaged(path: Path, reason: str) -> KdganError:
    return KdganError("sweep.yaml must be one that sweep wrote", f"{path}: {reason}", "Run the sweep again")
