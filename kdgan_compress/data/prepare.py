"""Preprocessing of images of any size: conversion to grey or RGB, then an antialiased bilinear resize.

The exported detector does the same without rounding to whole grey levels (docs/deploy.md has the effect on scores).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from kdgan_compress.errors import KdganError

LUMA = (0.299, 0.587, 0.114)
RESIZE_BATCH_SIZE = 4096
MAX_ENLARGEMENT = 3
"""GANomaly's networks for 64×64 pixels are trained on the 28×28 images of MNIST, for example."""


def to_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert images (N, H, W) or (N, H, W, 1 or 3) to (N, H, W, channels): luma (ITU-R 601), or grey repeated."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    luma = pixels.astype(np.float32) @ np.asarray(LUMA, dtype=np.float32)
    return np.rint(luma).astype(np.uint8)[..., None]


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Resize images (N, H, W, C) to a height and width.

    Bilinear with half-pixel centres, antialiased when shrinking; within one grey level of Pillow's result.

    Returns:
        uint8 (N, C, *size).

    Raises:
        KdganError: Images smaller than a third of ``size``, which would have too little detail.
    """
    height, width = pixels.shape[1:3]
    if height * MAX_ENLARGEMENT < size[0] or width * MAX_ENLARGEMENT < size[1]:
        smallest = "×".join(str(-(-side // MAX_ENLARGEMENT)) for side in size)
        problem = f"Images must be at least {smallest} pixels for a size of {size[0]}×{size[1]}"
        hint = "Use larger images, or train with a smaller --image-size or --photo-size"
        raise KdganError(problem, f"got {height}×{width}", hint)
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    if (height, width) == size:
        return images.contiguous()
    resized = [
        interpolate(batch.float(), size, mode="bilinear", antialias=True, align_corners=False).round_()
        for batch in images.split(RESIZE_BATCH_SIZE)
    ]
    return torch.cat(resized).clamp_(0, 255).to(torch.uint8)
