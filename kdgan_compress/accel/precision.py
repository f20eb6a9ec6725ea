"""The precision of matrix products on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kdgan_compress.distillation.scheduler import Precision


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
