"""Files that outlive a process: checkpoints, run folders, teacher caches."""

from kdgan_compress.storage.atomic import atomic_path
from kdgan_compress.storage.cache_folder import CacheFolder
from kdgan_compress.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdgan_compress.storage.run_folder import MODEL_FILE, RunFolder

__all__ = ["MODEL_FILE", "CacheFolder", "Checkpoint", "RunFolder", "atomic_path", "load_checkpoint", "save_checkpoint"]
