"""The ONNX operators that a detector may have, and the values that their attributes may have.

Standard operators without subgraphs, sequences, texts and random numbers; what a value may be depends only on the
attribute's name.
"""

import math
import re
from collections.abc import Callable
from typing import Any

MAX_SIDE, MAX_STEP, MAX_RANK = 65_536, 64, 8
SENTINEL = 1 << 31
"""Values beyond this mean "to the end", as in Slice."""

OPERATOR_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
Clip Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear
Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu
Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid
HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul
Neg Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
Round ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(OPERATOR_NAMES.split())

Rule = tuple[str, Callable[[Any], bool]]


def _each(low: int, high: int, length: int = MAX_RANK) -> Rule:
    return "ints", lambda values: len(values) <= length and all(low <= value <= high for value in values)


def _int(low: int, high: int) -> Rule:
    return "i", lambda value: low <= value <= high


def _word(*words: str) -> Rule:
    return "s", lambda value: value in words


FLAG, AXIS, FINITE = _int(0, 1), _int(-MAX_RANK, MAX_RANK), ("f", math.isfinite)
DTYPE = _int(1, 23)

RULES: dict[str, Rule] = {
    **dict.fromkeys(("alpha", "beta", "bias", "gamma", "lambd", "momentum", "cubic_coeff_a"), FINITE),
    **dict.fromkeys(("extrapolation_value", "value_float", "epsilon"), FINITE),
    **dict.fromkeys(("align_corners", "allowzero", "antialias", "ceil_mode", "count_include_pad"), FLAG),
    **dict.fromkeys(("detect_negative", "detect_positive", "exclude_outside", "exclusive", "fmod", "keepdims"), FLAG),
    **dict.fromkeys(("largest", "noop_with_empty_axes", "reverse", "saturate", "select_last_index", "sorted"), FLAG),
    **dict.fromkeys(("storage_order", "transA", "transB", "upper"), FLAG),
    **dict.fromkeys(("axis", "start", "end"), AXIS),
    **dict.fromkeys(("to", "dtype", "output_dtype"), DTYPE),
    **dict.fromkeys(("group", "num_groups", "num_outputs"), _int(1, MAX_SIDE)),
    **dict.fromkeys(("strides", "dilations"), _each(1, MAX_STEP, 3)),
    "kernel_shape": _each(1, 1024, 3),
    "pads": _each(0, 1024, 6),
    "output_padding": _each(0, MAX_STEP, 3),
    "output_shape": _each(1, MAX_SIDE, 3),
    "perm": ("ints", lambda values: sorted(values) == list(range(len(values))) and len(values) <= MAX_RANK),
    "axes": _each(-MAX_RANK, MAX_RANK),
    "value_ints": _each(-MAX_SIDE, MAX_SIDE),
    "value_floats": ("floats", lambda values: all(map(math.isfinite, values))),
    "value_int": _int(-MAX_SIDE, MAX_SIDE),
    "value": ("t", lambda _: True),
    "batch_dims": _int(0, MAX_RANK),
    "block_size": _int(0, 1024),
    "blocksize": _int(1, 64),
    "p": _int(1, 16),
    "precision": _int(0, 23),
    "size": _int(1, 1024),
    "stash_type": _int(1, 1),
    "training_mode": _int(0, 0),
    "seed": _int(-SENTINEL, SENTINEL),
    "auto_pad": _word("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"),
    "approximate": _word("none", "tanh"),
    "coordinate_transformation_mode": _word(
        *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
        "tf_crop_and_resize",
    ),
    "equation": ("s", lambda value: re.fullmatch(r"[a-zA-Z,.>\- ]{1,100}", value) is not None),
    "keep_aspect_ratio_policy": _word("stretch", "not_larger", "not_smaller"),
    "mode": _word(
        *("nearest", "linear", "cubic", "bilinear", "bicubic"), *("constant", "reflect", "edge", "DCR", "CRD")
    ),
    "nearest_mode": _word("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "padding_mode": _word("zeros", "border", "reflection"),
    "reduction": _word("none", "add", "mul", "max", "min"),
}
"""Attribute → the field that has its value, and whether a value is valid."""
