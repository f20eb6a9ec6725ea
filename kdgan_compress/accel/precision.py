"""In what precision a GPU multiplies matrices."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


@contextmanager
def computing(precision: Precision, device_type: str) -> Iterator[None]:
    """Compute in this precision inside ``with``; a CPU always does in float32.

    torch lets convolutions on a GPU use TF32 unless told otherwise: ``float32`` tells it.
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
