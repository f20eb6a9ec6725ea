"""Finding and loading the model that a user names by a run folder or a file."""

from pathlib import Path

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import Checkpoint, load_checkpoint
from kdgan_compress.experiment.run_folder import MODEL_FILE, RunFolder


def model_path(model: str | Path) -> Path:
    """The model file of a run folder, or the file itself."""
    path = Path(model)
    return path / MODEL_FILE if path.is_dir() else path


def load_model(model: str | Path) -> Checkpoint:
    """``load_checkpoint`` of a run folder's model or a model file, with a KdganError for an unfinished run."""
    path = model_path(model)
    if not path.exists() and (path.parent / "recipe.yaml").exists():
        RunFolder(path.parent).check_has_not_failed()
        raise KdganError("The run must be finished", f"{model} has no model yet", "Finish it with --resume")
    return load_checkpoint(path)


def model_name(model: str | Path) -> str:
    """A short name: that of the run folder, or of the file without its suffix."""
    path = Path(model).resolve()
    if path.name == MODEL_FILE:
        path = path.parent
    return path.stem if path.is_file() else path.name
