"""Ways to quantize an encoder's weights to 8 bits; :mod:`vigil_serving.export.int8` measures which one to use.

``per token`` finds the scale of activations as the graph runs, one for each row of a product (:func:`quantize_per_token`).
``static`` finds it on calibration data and inserts quantize and dequantize nodes (QDQ) with ONNX Runtime. With either, an item's
result does not depend on the other items of its batch. ONNX Runtime's dynamic quantization takes one scale for the whole batch,
so it is not among them. A spectrogram stays in float32.
"""

import contextlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from vigil_serving.bundle.load import weights_file
from vigil_serving.export.float16 import spectrogram_nodes
from vigil_serving.export.modules import quiet
from vigil_serving.export.onnx_export import save_graph

Feed = Mapping[str, NDArray[np.generic]]
"""Inputs of one run of an encoder."""

Quantizer = Callable[[Sequence[Feed], Path], None]
"""Takes calibration data, one segment per feed, and writes the quantized encoder."""

PRODUCTS = ("MatMul", "Gemm")

FP32_PRODUCTS = (2, 4, 8)
"""Numbers of products with the widest inputs to keep in float32: few products cause most of a transformer's loss."""

RANGE_RUNS = 64
"""Runs of calibration data on which the ranges of inputs are measured."""


def prepare(encoder: Path, to: Path) -> None:
    """Optimise a float32 graph and infer its shapes, which quantization requires; write it to ``to``."""
    external: dict[str, Any] = {}
    if weights_file(encoder).is_file():
        name = weights_file(to).name
        external = {"save_as_external_data": True, "all_tensors_to_one_file": True, "external_data_location": name}
    with _quiet_root():
        quant_pre_process(str(encoder), str(to), skip_symbolic_shape=True, **external)


def candidates(prepared: Path, reduce_range: bool) -> dict[str, Quantizer]:
    """Return the quantizers to try on an encoder, which depend on where most of its weights are.

    Args:
        prepared: file written by :func:`prepare`.
        reduce_range: use 7 bits, for CPUs whose sums saturate.

    Returns:
        Name to quantizer; empty if there is no weight to quantize.
    """
    graph = onnx.load(prepared)
    spectrogram = spectrogram_nodes(graph)
    convolved, multiplied = _weights(graph, "Conv", skip=spectrogram), _weights(graph, *PRODUCTS, skip=spectrogram)
    if not convolved and not multiplied:
        return {}

    def per_token(count: int) -> Quantizer:
        def quantize(feeds: Sequence[Feed], to: Path) -> None:
            kept = set(_widest(graph, list(multiplied), feeds)[:count]) if count else set()
            save_graph(quantize_per_token(graph, multiplied.keys() - kept, reduce_range=reduce_range), to)

        return quantize

    def static(kept: set[str]) -> Quantizer:
        def quantize(feeds: Sequence[Feed], to: Path) -> None:
            if not feeds:
                raise ValueError("no calibration data")
            with _quiet_root():
                quantize_static(
                    prepared,
                    to,
                    _Reader(feeds),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=["Conv", *PRODUCTS],
                    per_channel=True,
                    reduce_range=reduce_range,
                    use_external_data_format=weights_file(prepared).is_file(),
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=sorted(spectrogram | kept),
                )

        return quantize

    if sum(convolved.values()) > sum(multiplied.values()):
        return {"static": static(set()), "static, sensitive layers in fp32": static(_sensitive(graph))}
    kept = [count for count in FP32_PRODUCTS if count < len(multiplied)]
    return {
        "per token": per_token(0),
        **{f"per token, {count} widest products in fp32": per_token(count) for count in kept},
        "static": static(set()),
    }


def quantize_per_token(graph: ModelProto, products: Set[str], *, reduce_range: bool = False) -> ModelProto:
    """Return a copy of a graph whose products with constant weights run in 8 bits, one scale for each row of activations.

    A row of ``X [..., K]`` (a token) is divided by its largest magnitude over 127 and rounded; so is each column of ``W [K, N]``.
    The sum of 8-bit products is exact, so a token's result does not depend on the other tokens. This is the token-wise scheme of
    ZeroQuant (Yao et al. 2022).

    Args:
        graph: a float32 graph.
        products: names of the ``MatMul`` and ``Gemm`` nodes to quantize; other products, and those of weights that are not a
            matrix, stay in float32.
        reduce_range: use 7 bits for the weights, for CPUs whose sums saturate.
    """
    made = ModelProto()
    made.CopyFrom(graph)
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    constants: dict[str, NDArray[np.generic]] = {
        "int8/zero": np.array(128, np.uint8),  # unsigned activations and signed weights are the fastest kernel
        "int8/one": np.array(1, np.float32),
        "int8/smallest": np.array(1e-12, np.float32),  # of a row of zeros
        "int8/step": np.array(1 / 127, np.float32),
        "int8/last_axis": np.array([-1], np.int64),
    }
    nodes: list[NodeProto] = []
    rounded: set[str] = set()
    for node in made.graph.node:
        weight = weights.get(node.input[1]) if node.name in products else None
        if weight is None or len(weight.dims) != 2 or not _is_plain(node):
            nodes.append(node)
            continue
        x, w, y = node.input[0], f"int8/{node.name}", node.output[0]
        q, scale = f"int8/{x}/rounded", f"int8/{x}/scale"
        if x not in rounded:  # query, key and value have the same input
            rounded.add(x)
            nodes += _round_rows(x, q, scale)
        matrix_KN = numpy_helper.to_array(weight)
        matrix_KN = matrix_KN.T if _attribute(node, "transB", 0) else matrix_KN
        scale_N = np.maximum(np.abs(matrix_KN).max(axis=0), 1e-12) / (63 if reduce_range else 127)
        constants |= {f"{w}/scale": scale_N.astype(np.float32), f"{w}/weight": np.rint(matrix_KN / scale_N).astype(np.int8)}
        product = y if len(node.input) == 2 else f"{w}/product"
        nodes += [
            helper.make_node("MatMulInteger", [q, f"{w}/weight", "int8/zero"], [f"{w}/sum"], f"{w}/sum"),
            helper.make_node("Cast", [f"{w}/sum"], [f"{w}/float"], f"{w}/float", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{w}/float", f"{w}/scale"], [f"{w}/scaled"], f"{w}/scaled"),
            helper.make_node("Mul", [f"{w}/scaled", scale], [product], f"{w}/product"),
        ]
        if product != y:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [y], f"{w}/sum_with_bias"))
    _replace_nodes(made, nodes, constants)
    return made


def _round_rows(x: str, q: str, scale: str) -> list[NodeProto]:
    """Return nodes that round ``x [..., K]`` to unsigned 8 bits around 128, and give the scale ``[..., 1]`` of each row."""
    return [
        helper.make_node("ReduceMax", [x, "int8/last_axis"], [f"{q}/largest"], f"{q}/largest", keepdims=1),
        helper.make_node("ReduceMin", [x, "int8/last_axis"], [f"{q}/lowest"], f"{q}/lowest", keepdims=1),
        helper.make_node("Neg", [f"{q}/lowest"], [f"{q}/negative"], f"{q}/negative"),
        helper.make_node("Max", [f"{q}/largest", f"{q}/negative", "int8/smallest"], [f"{q}/size"], f"{q}/size"),
        helper.make_node("Mul", [f"{q}/size", "int8/step"], [scale], scale),
        helper.make_node("Div", [x, scale], [f"{q}/divided"], f"{q}/divided"),
        helper.make_node("QuantizeLinear", [f"{q}/divided", "int8/one", "int8/zero"], [q], q),
    ]


def _replace_nodes(graph: ModelProto, nodes: Sequence[NodeProto], constants: Mapping[str, NDArray[np.generic]]) -> None:
    """Set the nodes of a graph, add constants, and remove the weights that no node uses."""
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.node[:], graph.graph.initializer[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(tensors)
    graph.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items() if name in used)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration data, one run after the other."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def _weights(graph: ModelProto, *kinds: str, skip: set[str]) -> dict[str, int]:
    """Return the nodes of some kinds that have weights, with the number of weights."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.graph.initializer}
    return {
        node.name: sum(sizes.get(name, 0) for name in node.input)
        for node in graph.graph.node
        if node.op_type in kinds and node.name not in skip and len(sizes.keys() & set(node.input[1:2]))
    }


def _widest(graph: ModelProto, products: Sequence[str], feeds: Sequence[Feed]) -> list[str]:
    """Return products sorted by how coarse 8 bits are for their inputs (largest magnitude over root mean square of a row)."""
    inputs = {node.name: node.input[0] for node in graph.graph.node if node.name in set(products)}
    watched = list(dict.fromkeys(inputs[name] for name in products))
    probe = ModelProto()
    probe.CopyFrom(graph)
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in watched)
    with tempfile.TemporaryDirectory() as folder:
        save_graph(probe, Path(folder) / "probe.onnx")
        session = onnxruntime.InferenceSession(str(Path(folder) / "probe.onnx"), providers=["CPUExecutionProvider"])
    coarse: dict[str, list[float]] = {name: [] for name in watched}
    for feed in feeds[:RANGE_RUNS]:
        for name, value in zip(watched, session.run(watched, dict(feed)), strict=True):
            typical = np.sqrt(np.square(value, dtype=np.float64).mean(axis=-1))
            coarse[name].append(float((np.abs(value).max(axis=-1) / np.maximum(typical, 1e-12)).mean()))
    return sorted(products, key=lambda name: -float(np.mean(coarse[inputs[name]])) if feeds else 0.0)


def _sensitive(graph: ModelProto) -> set[str]:
    """Return the first convolution, the depthwise ones, and the last product: few weights, and much of the loss."""
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    products = [node.name for node in graph.graph.node if node.op_type in PRODUCTS]
    depthwise = {node.name for node in convolutions if _attribute(node, "group") > 1}
    return {convolutions[0].name, *products[-1:], *depthwise}


def _is_plain(node: NodeProto) -> bool:
    """Return whether a product is ``X W + b``, with ``W`` transposed or not."""
    return _attribute(node, "alpha") == _attribute(node, "beta") == 1 and not _attribute(node, "transA", 0)


def _attribute(node: NodeProto, name: str, default: float = 1) -> float:
    return next((helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), default)


@contextlib.contextmanager
def _quiet_root() -> Iterator[None]:
    """Silence the quantizer, which writes to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        root.setLevel(level)
