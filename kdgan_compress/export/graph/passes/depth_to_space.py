"""Transposed convolutions as sub-pixel convolutions, which every runtime has in every precision."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kdgan_compress.export.graph.nodes import (
    ELEMENTWISE,
    Array,
    add_constant,
    constant_value,
    num_groups,
    only_consumer,
    replace,
)


def conv_transpose_to_depth_to_space(model: ir.Model) -> int:
    """Replace a transposed convolution by a convolution, with s × s kernels per output channel, and DepthToSpace.

    Requires kernel − 2·padding = stride s, as in 4, 1, 2; on a 1×1 image any stride works. An activation moves before
    the DepthToSpace, where runtimes fuse it with the convolution.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        geometry = upsampling_geometry(node) if node.op_type == "ConvTranspose" else None
        weight = constant_value(node.inputs[1]) if geometry else None
        if geometry is None or weight is None:
            continue
        stride, padding = geometry
        kernel, pads = _subpixel_kernels(weight, stride, padding)
        inputs = [node.inputs[0], add_constant(graph, kernel)]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = constant_value(node.inputs[2])
            assert bias is not None
            inputs.append(add_constant(graph, np.tile(bias, stride * stride)))
        convolution = ir.node(
            "Conv", inputs, {"kernel_shape": kernel.shape[2:], "strides": (1, 1), "pads": (*pads[0], *pads[1])}
        )
        last, old = convolution, [node]
        follower = only_consumer(node.outputs[0])
        if follower is not None and follower.op_type in ELEMENTWISE:
            last = ir.node(follower.op_type, [convolution.outputs[0]], follower.attributes)
            old.append(follower)
        shuffle = ir.node("DepthToSpace", [last.outputs[0]], {"blocksize": stride, "mode": "DCR"})
        replace(graph, old, *([convolution] if last is convolution else [convolution, last]), shuffle)
        count += 1
    return count


def upsampling_geometry(node: ir.Node) -> tuple[int, int] | None:
    """Stride and padding of a transposed convolution whose output is stride times its input; None for any other."""
    weight, image = constant_value(node.inputs[1]), node.inputs[0]
    if weight is None or weight.ndim != 4 or image is None:
        return None

    def ints(name: str, default: list[int]) -> list[int]:
        return list(node.attributes[name].as_ints()) if name in node.attributes else default

    kernel = list(weight.shape[2:])
    strides, pads = ints("strides", [1, 1]), ints("pads", [0] * 4)
    is_plain = ints("dilations", [1, 1]) == [1, 1] and ints("output_padding", [0, 0]) == [0, 0]
    if image.shape is not None and list(image.shape[2:]) == [1, 1] and not any(pads):
        strides = kernel
    fits = len({*kernel}) == len({*strides}) == len({*pads}) == 1 and kernel[0] - 2 * pads[0] == strides[0]
    return (strides[0], pads[0]) if is_plain and num_groups(node) == 1 and fits else None


def _subpixel_kernels(weight: Array, stride: int, padding: int) -> tuple[Array, list[tuple[int, int]]]:
    """The convolution's kernel (s·s·out, in, k, k), and its padding before and after, per axis.

    A transposed convolution adds x[i]·w[k] to output position s·i − padding + k. So output position s·m + a is the sum
    of x[m + d]·w[a + padding − s·d] over all offsets d for which the index lies within the kernel.
    """
    size = weight.shape[2]
    taps = [
        (phase, offset, phase + padding - stride * offset)
        for phase in range(stride)
        for offset in range(-size, size + 1)
        if 0 <= phase + padding - stride * offset < size
    ]
    first, last = min(offset for _, offset, _ in taps), max(offset for _, offset, _ in taps)
    kernel: NDArray[np.float64] = np.zeros(
        (stride, stride, weight.shape[1], weight.shape[0], last - first + 1, last - first + 1)
    )
    for row, row_offset, row_index in taps:
        for column, column_offset, column_index in taps:
            position = (row, column, slice(None), slice(None), row_offset - first, column_offset - first)
            kernel[position] = weight[:, :, row_index, column_index].T
    return kernel.reshape(-1, *kernel.shape[3:]), [(-first, -first), (last, last)]
