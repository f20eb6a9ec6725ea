"""The precision of matrix products on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kdgan_compress.distillation.stage_run import Precision, StageRun
from kdgan_compress.distillation.step import StageModels, train_step


@contextmanager
def precision_context(precision: Precision, device_type: str) -> Iterator[None]:
    """Compute in this precision inside ``with``; a CPU always computes in float32.

    By default torch allows TF32 in convolutions on a GPU; ``float32`` forbids it.
    """
    if device_type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def step_in_precision(run: StageRun) -> Callable[[StageModels, Tensor, int], dict[str, Tensor]]:
    """``step.train_step`` in the precision of a stage's settings."""

    def step(models: StageModels, indices: Tensor, step_index: int) -> dict[str, Tensor]:
        with precision_context(run.settings.precision, run.images.device.type):
            return train_step(models, indices, step_index)

    return step
