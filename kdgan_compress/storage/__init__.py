"""Files that outlive a process: checkpoints and run folders."""

from kdgan_compress.storage.atomic import atomic_path
from kdgan_compress.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdgan_compress.storage.run_folder import MODEL_FILE, RunFolder

__all__ = ["MODEL_FILE", "Checkpoint", "RunFolder", "atomic_path", "load_checkpoint", "save_checkpoint"]
