"""Ways to quantize an encoder's weights to 8 bits with ONNX Runtime; :mod:`vigil_serving.export.int8` measures which one to use.

``dynamic`` finds the ranges of activations as the graph runs. ``static`` finds them on calibration data and inserts quantize and
dequantize nodes (QDQ). A spectrogram stays in float32.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from vigil_serving.export.float16 import spectrogram_nodes
from vigil_serving.export.modules import quiet

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
    with _quiet_root():
        quant_pre_process(str(encoder), str(to), skip_symbolic_shape=True)


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

    def dynamic(count: int) -> Quantizer:
        def quantize(feeds: Sequence[Feed], to: Path) -> None:
            kept = set(_widest(graph, list(multiplied), feeds)[:count]) if count else set()
            with _quiet_root():
                quantize_dynamic(
                    prepared,
                    to,
                    op_types_to_quantize=list(PRODUCTS),
                    per_channel=True,
                    reduce_range=reduce_range,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=sorted(spectrogram | kept),
                )

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
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=sorted(spectrogram | kept),
                )

        return quantize

    if sum(convolved.values()) > sum(multiplied.values()):
        return {"static": static(set()), "static, sensitive layers in fp32": static(_sensitive(graph))}
    kept = [count for count in FP32_PRODUCTS if count < len(multiplied)]
    return {
        "dynamic": dynamic(0),
        **{f"dynamic, {count} widest products in fp32": dynamic(count) for count in kept},
        "static": static(set()),
    }


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
    """Return products sorted by how coarse 256 steps are for their inputs (range over root mean square), the coarsest first."""
    inputs = {node.name: node.input[0] for node in graph.graph.node if node.name in set(products)}
    watched = list(dict.fromkeys(inputs[name] for name in products))
    probe = ModelProto()
    probe.CopyFrom(graph)
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in watched)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    coarse: dict[str, list[float]] = {name: [] for name in watched}
    for feed in feeds[:RANGE_RUNS]:
        for name, value in zip(watched, session.run(watched, dict(feed)), strict=True):
            size = float(np.sqrt(np.square(value, dtype=np.float64).mean()))
            coarse[name].append((max(float(value.max()), 0.0) - min(float(value.min()), 0.0)) / max(size, 1e-12))
    return sorted(products, key=lambda name: -float(np.mean(coarse[inputs[name]])) if feeds else 0.0)


def _sensitive(graph: ModelProto) -> set[str]:
    """Return the first convolution, the depthwise ones, and the last product: few weights, and much of the loss."""
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    products = [node.name for node in graph.graph.node if node.op_type in PRODUCTS]
    depthwise = {node.name for node in convolutions if _groups(node) > 1}
    return {convolutions[0].name, *products[-1:], *depthwise}


def _groups(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


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
