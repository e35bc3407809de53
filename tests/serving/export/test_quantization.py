"""`quantize_per_token` computes what a loop over rows computes, and no row depends on another."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vigil_serving.export.quantization import quantize_per_token

WIDTH, OUTPUTS = 24, 8


def _graph(kind: str, weight: np.ndarray, bias: np.ndarray, **attributes: float) -> onnx.ModelProto:
    """``Y = X W``, or ``Y = X W + b`` with a transposed weight."""
    inputs = ["x", "w"] if kind == "MatMul" else ["x", "w", "b"]
    node = helper.make_node(kind, inputs, ["y"], "product", **attributes)
    rank = 3 if kind == "MatMul" else 2
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")][: len(inputs) - 1],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(graph, full_check=True)
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def _rows_by_a_loop(x_MK: np.ndarray, w_KN: np.ndarray) -> np.ndarray:
    """Round each row and column to 127 steps, and multiply in float64."""
    rows, columns = (np.maximum(np.abs(a).max(axis=axis, keepdims=True), 1e-12) for a, axis in ((x_MK, 1), (w_KN, 0)))
    rounded = [np.rint(a / (size / 127)) for a, size in ((x_MK, rows), (w_KN, columns))]
    return (rounded[0].astype(np.float64) @ rounded[1].astype(np.float64)) * (rows / 127) * (columns / 127)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([1e-6, 1.0, 1e4]))
def test_quantize_per_token_multiplies_as_a_loop_does(kind: str, seed: int, rows: int, outlier: float) -> None:
    rng = np.random.default_rng(seed)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, WIDTH), (WIDTH, OUTPUTS), (OUTPUTS,)))
    x[0] *= outlier
    x[-1] *= rows == 1 or seed % 2  # a row of zeros
    made = _graph(kind, w, b) if kind == "MatMul" else _graph(kind, np.ascontiguousarray(w.T), b, transB=1)
    session = _session(quantize_per_token(made, {"product"}))
    fed = x[None] if kind == "MatMul" else x
    found = session.run(None, {"x": fed})[0].reshape(rows, OUTPUTS)
    expected = _rows_by_a_loop(x, w) + (b if kind == "Gemm" else 0)
    # A value within float32's rounding of half a step may be rounded to either side.
    step = np.abs(x).max(axis=1, keepdims=True) / 127 * np.abs(w).max()
    assert (np.abs(found - expected) <= 1.01 * step + 1e-5 * (1 + np.abs(expected))).all()
    assert np.median(np.abs(found - expected)) <= 1e-5 * max(1.0, np.abs(expected).max())
    for row in range(rows):
        alone = session.run(None, {"x": fed[:, row : row + 1] if kind == "MatMul" else fed[row : row + 1]})[0].reshape(-1)
        assert np.array_equal(alone, found[row]), "bitwise, whatever the other rows hold"


def test_quantize_per_token_leaves_other_products_in_float32() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((WIDTH, OUTPUTS)).astype(np.float32), np.zeros(OUTPUTS, np.float32)
    scaled, batched = _graph("Gemm", w, b, alpha=2.0), _graph("MatMul", w[None], b)
    for graph, products in ((scaled, {"product"}), (batched, {"product"}), (_graph("MatMul", w, b), set())):
        assert quantize_per_token(graph, products) == graph


def test_quantize_per_token_uses_7_bit_weights_with_reduce_range() -> None:
    w = np.random.default_rng(0).standard_normal((WIDTH, OUTPUTS)).astype(np.float32)
    graph = _graph("MatMul", w, np.zeros(OUTPUTS, np.float32))
    largest = []
    for reduce_range in (False, True):
        made = quantize_per_token(graph, {"product"}, reduce_range=reduce_range)
        (weight,) = [numpy_helper.to_array(t) for t in made.graph.initializer if t.data_type == TensorProto.INT8]
        largest.append(int(np.abs(weight.astype(int)).max()))
    assert largest == [127, 63]
