"""The layers of every block: torch's own, but faster in training where torch is slow.

A convolution of few channels, or one whose one side is a vector, spends its time on calls and on reordering weights. In
training mode these layers compute such a one by matrix products over patches, of all groups at once. All others, and
every one in evaluation mode (what is counted and exported), are torch's operator. docs/performance.md has the times.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, group_norm, unfold

LARGEST_PATCHES = 1 << 14
"""Numbers a group in the matrix of patches up to which the products beat the convolution, measured on a CPU."""

FEW_CHANNELS = 3
"""Where the image's side has no more channels than that, products beat the convolution at any size."""


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``, in training as weight × patches of the input where that is faster.

    Shape: (B, in_channels, H, W) → (B, out_channels, H', W'); padding by numbers, dilation 1.
    """

    padding: tuple[int, int]

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        batch, groups = len(images), self.groups
        height, width = (_out_side(self, axis, images.shape[2 + axis]) for axis in (0, 1))
        if not _products_are_faster(self, batch, self.in_channels, height * width):
            return super().forward(images)
        weight = self.weight.view(groups, self.out_channels // groups, -1)
        if images.shape[2:] == self.kernel_size and self.padding == (0, 0):
            output = _times_matrices(images, weight, transposed=True)
        else:
            patches = unfold(images, self.kernel_size, padding=self.padding, stride=self.stride)
            output = _each_image(weight, patches.view(batch, groups, -1, height * width))
        return _with_bias(self, output.reshape(batch, self.out_channels, height, width))


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``, in training as patches of the output = weightᵀ × input where that is faster.

    Shape: (B, in_channels, H, W) → (B, out_channels, H', W'); padding by numbers, no output padding, dilation 1.
    """

    padding: tuple[int, int]

    def forward(self, images: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not self.training:
            return super().forward(images, output_size)
        batch, groups, places = len(images), self.groups, images.shape[2] * images.shape[3]
        if not _products_are_faster(self, batch, self.out_channels, places):
            return super().forward(images, output_size)
        weight = self.weight.view(groups, self.in_channels // groups, -1)
        if places == 1 and self.padding == (0, 0):
            output = _times_matrices(images, weight).reshape(batch, self.out_channels, *self.kernel_size)
        else:
            patches = _each_image(weight.transpose(1, 2), images.reshape(batch, groups, -1, places))
            patches = patches.view(batch, -1, places)
            height, width = (
                (images.shape[2 + axis] - 1) * self.stride[axis] - 2 * self.padding[axis] + self.kernel_size[axis]
                for axis in (0, 1)
            )
            output = fold(patches, (height, width), self.kernel_size, padding=self.padding, stride=self.stride)
        return _with_bias(self, output)


class InstanceNorm2d(nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` with affine weights, in training as group norm with a group a channel: the same sums."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        return group_norm(images, self.num_features, self.weight, self.bias, self.eps)


Convolution = Conv2d | ConvTranspose2d


def _out_side(layer: Conv2d, axis: int, side: int) -> int:
    return (side + 2 * layer.padding[axis] - layer.kernel_size[axis]) // layer.stride[axis] + 1


def _products_are_faster(layer: Convolution, batch: int, image_side_channels: int, places: int) -> bool:
    channels = image_side_channels // layer.groups
    patches = batch * channels * layer.kernel_size[0] * layer.kernel_size[1] * places
    return places == 1 or channels <= FEW_CHANNELS or patches <= LARGEST_PATCHES


def _each_image(matrices: Tensor, columns: Tensor) -> Tensor:
    """Each group's matrix (groups, m, n) times the columns (B, groups, n, L) of each image."""
    return torch.bmm(matrices, columns[0]) if len(columns) == 1 else torch.matmul(matrices, columns)


def _times_matrices(images: Tensor, matrices: Tensor, transposed: bool = False) -> Tensor:
    """Each group's images as vectors (B, groups · n, h, w) times its matrix (groups, n · h · w, m) → (B, groups, m)."""
    vectors = images.reshape(len(images), len(matrices), -1).transpose(0, 1)
    product: Tensor = _Product.apply(vectors, matrices, transposed)
    return product.transpose(0, 1)


class _Product(torch.autograd.Function):
    """(G, B, n) × (G, n, m), the matrices given transposed or not.

    What autograd makes of it takes ten times as long at B = 1: a product of a column and a row, and a gradient that
    doesn't lie as its matrix does and has to be copied (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, matrices: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(vectors, matrices)
        ctx.transposed = transposed
        return torch.bmm(vectors, matrices.transpose(1, 2) if transposed else matrices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        vectors, matrices = ctx.saved_tensors
        vectors, gradient = vectors.to(matrices.dtype), gradient.to(matrices.dtype)  # autocast may have lowered them
        of_vectors = of_matrices = None
        if ctx.needs_input_grad[0]:
            of_vectors = torch.bmm(gradient, matrices if ctx.transposed else matrices.transpose(1, 2))
        if ctx.needs_input_grad[1]:
            rows, columns = (gradient, vectors) if ctx.transposed else (vectors, gradient)
            rows = rows.transpose(1, 2)
            of_matrices = rows * columns if rows.shape[2] == 1 else torch.bmm(rows, columns)
        return of_vectors, of_matrices, None


def _with_bias(layer: Convolution, output: Tensor) -> Tensor:
    return output if layer.bias is None else output + layer.bias.view(-1, 1, 1)
