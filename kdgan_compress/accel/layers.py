"""im2col layers: torch's convolutions and instance norm, computed faster where torch is slow.

A convolution of few channels, or one whose input or output is a vector, is bound by call overhead and by reordering
weights. These layers compute it as a matrix product over patches (im2col + GEMM), for all groups at once; all others
are torch's operator. ``fast_layers`` swaps them into any network, for training and scoring, and out again: what is
counted and exported has torch's layers. docs/performance.md has the times.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, group_norm, unfold

MAX_UNFOLD_NUMEL = 1 << 14
"""Elements per group of the patch matrix up to which the products beat the convolution, measured on a CPU."""

MAX_NARROW_CHANNELS = 3
"""Image-side channels up to which the products beat the convolution at any size, measured on a CPU.

On a GPU they beat it only where one side is a vector: a patch matrix takes one kernel per image there.
"""


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` as weight × patches of the input where that is faster.

    Shape: (B, in_channels, H, W) → (B, out_channels, H', W'); padding by numbers, dilation 1.
    """

    padding: tuple[int, int]

    def forward(self, images: Tensor) -> Tensor:
        batch, groups = len(images), self.groups
        height, width = (_output_size(self, axis, images.shape[2 + axis]) for axis in (0, 1))
        if not _should_use_im2col(self, batch, self.in_channels, height * width):
            return super().forward(images)
        weight = self.weight.view(groups, self.out_channels // groups, -1)
        if images.shape[2:] == self.kernel_size and self.padding == (0, 0):
            output = _vectors_times_matrices(images, weight, transposed=True)
        else:
            patches = unfold(images, self.kernel_size, padding=self.padding, stride=self.stride)
            output = _matmul_per_group(weight, patches.view(batch, groups, -1, height * width))
        return _with_bias(self, output.reshape(batch, self.out_channels, height, width))


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` as patches of the output = weightᵀ × input where that is faster.

    Shape: (B, in_channels, H, W) → (B, out_channels, H', W'); padding by numbers, no output padding, dilation 1.
    """

    padding: tuple[int, int]

    def forward(self, images: Tensor, output_size: list[int] | None = None) -> Tensor:
        batch, groups, positions = len(images), self.groups, images.shape[2] * images.shape[3]
        if not _should_use_im2col(self, batch, self.out_channels, positions):
            return super().forward(images, output_size)
        weight = self.weight.view(groups, self.in_channels // groups, -1)
        if positions == 1 and self.padding == (0, 0):
            output = _vectors_times_matrices(images, weight).reshape(batch, self.out_channels, *self.kernel_size)
        else:
            patches = _matmul_per_group(weight.transpose(1, 2), images.reshape(batch, groups, -1, positions))
            patches = patches.view(batch, -1, positions)
            height, width = (
                (images.shape[2 + axis] - 1) * self.stride[axis] - 2 * self.padding[axis] + self.kernel_size[axis]
                for axis in (0, 1)
            )
            output = fold(patches, (height, width), self.kernel_size, padding=self.padding, stride=self.stride)
        return _with_bias(self, output)


class InstanceNorm2d(nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` as group norm with one group per channel, which computes the same."""

    def forward(self, images: Tensor) -> Tensor:
        return group_norm(images, self.num_features, self.weight, self.bias, self.eps)


Convolution = Conv2d | ConvTranspose2d

FAST_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.InstanceNorm2d: InstanceNorm2d,
}


@contextmanager
def fast_layers(network: nn.Module) -> Iterator[None]:
    """Let a network compute by the layers of this module inside ``with``; its weights stay where they are."""
    swapped = [module for module in network.modules() if _has_fast_form(module)]
    for module in swapped:
        module.__class__ = FAST_LAYERS[type(module)]
    try:
        yield
    finally:
        for module in swapped:
            module.__class__ = type(module).__mro__[1]


def _has_fast_form(module: nn.Module) -> bool:
    if isinstance(module, nn.InstanceNorm2d):
        return type(module) in FAST_LAYERS and not module.track_running_stats
    return (
        isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        and type(module) in FAST_LAYERS
        and isinstance(module.padding, tuple)
        and module.padding_mode == "zeros"
        and module.dilation == (1, 1)
        and module.output_padding == (0, 0)
    )


def _output_size(layer: Conv2d, axis: int, size: int) -> int:
    return (size + 2 * layer.padding[axis] - layer.kernel_size[axis]) // layer.stride[axis] + 1


def _should_use_im2col(layer: Convolution, batch: int, image_side_channels: int, positions: int) -> bool:
    if layer.weight.is_cuda:
        return positions == 1
    channels = image_side_channels // layer.groups
    patches = batch * channels * layer.kernel_size[0] * layer.kernel_size[1] * positions
    return positions == 1 or channels <= MAX_NARROW_CHANNELS or patches <= MAX_UNFOLD_NUMEL


def _matmul_per_group(matrices: Tensor, columns: Tensor) -> Tensor:
    """Each group's matrix (groups, m, n) times the columns (B, groups, n, L) of each image."""
    return torch.bmm(matrices, columns[0]) if len(columns) == 1 else torch.matmul(matrices, columns)


def _vectors_times_matrices(images: Tensor, matrices: Tensor, transposed: bool = False) -> Tensor:
    """Each group's images as vectors (B, groups · n, h, w) times its matrix (groups, n · h · w, m) → (B, groups, m)."""
    vectors = images.reshape(len(images), len(matrices), -1).transpose(0, 1)
    product: Tensor = _Product.apply(vectors, matrices, transposed)
    return product.transpose(0, 1)


class _Product(torch.autograd.Function):
    """(G, B, n) × (G, n, m), the matrices given transposed or not.

    Autograd's own backward takes ten times as long at B = 1: it multiplies a column by a row, and its gradient has
    another memory layout than the matrix and is copied (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, matrices: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(vectors, matrices)
        ctx.transposed = transposed
        return torch.bmm(vectors, matrices.transpose(1, 2) if transposed else matrices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        vectors, matrices = ctx.saved_tensors
        vectors, gradient = (
            vectors.to(matrices.dtype),
            gradient.to(matrices.dtype),
        )  # autocast may have changed the dtype
        grad_vectors = grad_matrices = None
        if ctx.needs_input_grad[0]:
            grad_vectors = torch.bmm(gradient, matrices if ctx.transposed else matrices.transpose(1, 2))
        if ctx.needs_input_grad[1]:
            rows, columns = (gradient, vectors) if ctx.transposed else (vectors, gradient)
            rows = rows.transpose(1, 2)
            grad_matrices = rows * columns if rows.shape[2] == 1 else torch.bmm(rows, columns)
        return grad_vectors, grad_matrices, None


def _with_bias(layer: Convolution, output: Tensor) -> Tensor:
    return output if layer.bias is None else output + layer.bias.view(-1, 1, 1)
