"""Weights that are stored in less space, against NumPy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.helper import make_node
from tiny_graphs import from_nodes, operators, run

from kdgan_compress.export.graph.storage import pack_triangles, store_int8

STACK = np.triu(np.random.default_rng(0).normal(size=(3, 7, 7)) * [1e-3, 1, 10, 1, 1, 100, 1]).astype(np.float32)
VECTORS = np.random.default_rng(1).normal(size=(3, 5, 7)).astype(np.float32)


def product(matrices: np.ndarray, shape=(3, "N", 7)) -> ir.Model:
    nodes = [make_node("MatMul", ["images", "w"], ["y"]), make_node("Identity", ["y"], ["score"])]
    return from_nodes(nodes, {"w": matrices.astype(np.float32)}, list(shape))


def num_bytes(model: ir.Model) -> int:
    used = {value for node in model.graph for value in node.inputs}
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v in used)


def test_triangles_stay_exact_in_float32():
    model = product(STACK)
    before = run(model, VECTORS)
    assert pack_triangles(model) == 1
    np.testing.assert_array_equal(run(model, VECTORS), before)
    assert num_bytes(model) == 3 * 29 * 4 + 49 * 2 + 3 * 8  # 28 upper values and a zero, short indices, a shape


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("int8", 1)])
def test_triangles_in_fewer_bytes(dtype, size):
    model = product(STACK)
    assert pack_triangles(model, dtype) == 1
    scales = 3 * 7 * 4 if dtype == "int8" else 0
    assert num_bytes(model) == 3 * 29 * size + 49 * 2 + 3 * 8 + scales
    unit = np.eye(7, dtype=np.float32)[None].repeat(3, 0)
    found = run(model, unit)
    if dtype == "float16":
        np.testing.assert_array_equal(found, STACK.astype(np.float16).astype(np.float32))
    else:
        largest = np.abs(STACK).max(1, keepdims=True)
        assert (np.abs(found - STACK) <= largest / 254 * 1.001).all()
    assert not np.tril(found, -1).any()


def test_values_that_float16_lacks_stay_float32():
    model = product(STACK * 1e4)
    pack_triangles(model, "float16")
    np.testing.assert_array_equal(run(model, np.eye(7, dtype=np.float32)[None].repeat(3, 0)), STACK * np.float32(1e4))


@pytest.mark.parametrize("matrices", [STACK.swapaxes(1, 2), STACK[0], STACK[:, :1, :1]], ids=["lower", "one", "1×1"])
def test_other_products_stay(matrices):
    model = product(matrices, (3, "N", matrices.shape[-2]))
    assert pack_triangles(model, "int8") == 0


def test_large_stacks_have_longer_indices():
    size = 370  # 68,635 upper values
    model = product(np.ones((1, size, size)) * np.triu(np.ones((size, size))), (1, "N", size))
    pack_triangles(model)
    np.testing.assert_array_equal(run(model, np.ones((1, 1, size), np.float32))[0, 0], np.arange(1, size + 1))


LAYERS = {
    "Conv": ((24, 6, 3, 3), (0,), ["N", 6, 5, 5]),
    "ConvTranspose": ((6, 24, 3, 3), (1,), ["N", 6, 5, 5]),
    "Gemm": ((24, 60), (0,), ["N", 60]),
    "MatMul": ((60, 24), (1,), ["N", 60]),
}


@pytest.mark.parametrize("operator", LAYERS)
def test_weights_as_int8_differ_by_half_a_step_of_their_channel(operator):
    shape, outputs, images = LAYERS[operator]
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weights *= np.logspace(-3, 3, 24).reshape([-1 if axis in outputs else 1 for axis in range(len(shape))])
    weights[tuple(slice(0, 1) if axis in outputs else slice(None) for axis in range(len(shape)))] = 0
    attributes = {"transB": 1} if operator == "Gemm" else {}
    nodes = [make_node(operator, ["images", "w"], ["y"], **attributes), make_node("Identity", ["y"], ["score"])]
    model = from_nodes(nodes, {"w": weights}, images)
    before = num_bytes(model)
    assert store_int8(model) == 1
    assert operators(model)["Mul"] == 1
    assert num_bytes(model) == before / 4 + 24 * 4
    (multiply,) = [node for node in model.graph if node.op_type == "Mul"]
    stored = onnx.numpy_helper.to_array(ir.to_proto(multiply.inputs[0].producer().inputs[0].const_value))
    found = stored * multiply.inputs[1].const_value.numpy()
    axes = tuple(axis for axis in range(len(shape)) if axis not in outputs)
    largest = np.abs(weights).max(axes, keepdims=True)
    assert stored.dtype == np.int8
    assert (np.abs(found - weights) <= largest / 254 * 1.001).all()
    values = np.random.default_rng(1).normal(size=[4, *images[1:]]).astype(np.float32)
    exact = from_nodes(nodes, {"w": found.astype(np.float32)}, images)
    np.testing.assert_allclose(run(model, values), run(exact, values), rtol=1e-5, atol=1e-5)


def test_small_weights_and_stacks_stay():
    small = product(np.ones((10, 10)), ("N", 10))
    stack = product(np.ones((2, 30, 30)), (2, "N", 30))
    assert (store_int8(small), store_int8(stack)) == (0, 0)
