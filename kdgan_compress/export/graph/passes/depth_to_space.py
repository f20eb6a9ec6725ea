"""Transposed convolutions as sub-pixel convolutions, which every runtime has in every precision."""

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.graph.nodes import (
    Array,
    add_constant,
    constant_input,
    is_pixel,
    num_groups,
    replace_layer,
    weight_of,
)


def conv_transpose_to_depth_to_space(model: ir.Model) -> int:
    """Replace a transposed convolution by a convolution, with s × s kernels per output channel, and DepthToSpace.

    Requires kernel − 2·padding = stride s, as in 4, 1, 2; on a 1×1 image any stride works. An activation moves before
    the DepthToSpace, where runtimes fuse it with the convolution.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        geometry = upsampling_geometry(node) if node.op_type == "ConvTranspose" else None
        if geometry is None:
            continue
        stride, padding = geometry
        kernel, (first, last) = _subpixel_kernels(weight_of(node), stride, padding)
        inputs, bias = [node.inputs[0], add_constant(graph, kernel)], constant_input(node, 2)
        if bias is not None:
            inputs.append(add_constant(graph, np.tile(bias, stride * stride)))
        attributes = {"kernel_shape": kernel.shape[2:], "strides": (1, 1), "pads": (-first, -first, last, last)}
        convolution = ir.node("Conv", inputs, attributes)
        replace_layer(graph, node, [convolution], "DepthToSpace", blocksize=stride, mode="DCR")
        count += 1
    return count


def upsampling_geometry(node: ir.Node) -> tuple[int, int] | None:
    """Stride and padding of a transposed convolution whose output is stride times its input; None for any other."""
    weight = constant_input(node, 1)
    if weight is None or weight.ndim != 4:
        return None

    def ints(name: str, default: list[int]) -> list[int]:
        return list(node.attributes[name].as_ints()) if name in node.attributes else default

    kernel = list(weight.shape[2:])
    strides, pads = ints("strides", [1, 1]), ints("pads", [0] * 4)
    is_plain = ints("dilations", [1, 1]) == [1, 1] and ints("output_padding", [0, 0]) == [0, 0]
    has_known_bias = len(node.inputs) < 3 or constant_input(node, 2) is not None
    if is_pixel(node.inputs[0]) and not any(pads):
        strides = kernel
    fits = len({*kernel}) == len({*strides}) == len({*pads}) == 1 and kernel[0] - 2 * pads[0] == strides[0]
    return (strides[0], pads[0]) if is_plain and has_known_bias and num_groups(node) == 1 and fits else None


def _subpixel_kernels(weight: Array, stride: int, padding: int) -> tuple[Array, tuple[int, int]]:
    """The convolution's kernel (s·s·out, in, k, k), and its first and last offset from the output pixel.

    A transposed convolution adds x[i]·w[k] to output position s·i − padding + k. So output position s·m + a is the sum
    of x[m + d]·w[a + padding − s·d] over all offsets d for which the index lies within the kernel.
    """
    size = weight.shape[2]
    taps = [
        (phase, offset, index)
        for phase in range(stride)
        for offset in range(-size, size + 1)
        if 0 <= (index := phase + padding - stride * offset) < size
    ]
    first, last = min(offset for _, offset, _ in taps), max(offset for _, offset, _ in taps)
    kernel = np.zeros((stride, stride, weight.shape[1], weight.shape[0], last - first + 1, last - first + 1))
    for row, row_offset, row_index in taps:
        for column, column_offset, column_index in taps:
            taps_of_phase = kernel[row, column, :, :, row_offset - first, column_offset - first]
            taps_of_phase[:] = weight[:, :, row_index, column_index].T
    return kernel.reshape(-1, *kernel.shape[3:]), (first, last)
