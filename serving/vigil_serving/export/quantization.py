"""Candidates of an encoder with weights of 8 bits, by ONNX Runtime's quantisation: which of them serves is measured, not assumed.

``dynamic``: ranges of activations are found as the graph runs. ``static``: they were found beforehand, on calibration data, and
quantise and dequantise nodes are in the graph (QDQ). A spectrogram stays in float32 in all of them.
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

from vigil_serving.export.float16 import front_end
from vigil_serving.export.modules import quiet

Feed = Mapping[str, NDArray[np.generic]]
"""The inputs of one run of an encoder."""

Make = Callable[[Sequence[Feed], Path], None]
"""Takes calibration data, one segment a feed, and writes the quantised encoder."""

PRODUCTS = ("MatMul", "Gemm")

KEPT = (2, 4, 8)
"""How many products with the widest inputs are tried in float32: few products make most of a transformer's loss."""

LOOKED_AT = 64
"""Runs of calibration data that say how wide inputs are."""


def prepare(encoder: Path, to: Path) -> None:
    """Optimise a graph and infer its shapes, as quantisation wants it.

    Args:
        encoder: the float32 graph.
        to: the file to write.
    """
    with _still():
        quant_pre_process(str(encoder), str(to), skip_symbolic_shape=True)


def candidates(prepared: Path, reduce_range: bool) -> dict[str, Make]:
    """What to try on an encoder, by the kind of its weights.

    Args:
        prepared: by :func:`prepare`.
        reduce_range: 7 bits, for CPUs whose sums saturate.

    Returns:
        Name to what makes it. Empty if there is no weight to quantise.
    """
    graph = onnx.load(prepared)
    spectrogram = front_end(graph)
    convolved, multiplied = _weights(graph, "Conv", skip=spectrogram), _weights(graph, *PRODUCTS, skip=spectrogram)
    if not convolved and not multiplied:
        return {}

    def dynamic(count: int) -> Make:
        def make(feeds: Sequence[Feed], to: Path) -> None:
            kept = set(_widest(graph, list(multiplied), feeds)[:count]) if count else set()
            with _still():
                quantize_dynamic(
                    prepared,
                    to,
                    op_types_to_quantize=list(PRODUCTS),
                    per_channel=True,
                    reduce_range=reduce_range,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=sorted(spectrogram | kept),
                )

        return make

    def static(kept: set[str]) -> Make:
        def make(feeds: Sequence[Feed], to: Path) -> None:
            if not feeds:
                raise ValueError("no calibration data")
            with _still():
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

        return make

    if sum(convolved.values()) > sum(multiplied.values()):
        return {"static": static(set()), "static, sensitive layers in fp32": static(_sensitive(graph))}
    kept = [count for count in KEPT if count < len(multiplied)]
    return {
        "dynamic": dynamic(0),
        **{f"dynamic, {count} widest products in fp32": dynamic(count) for count in kept},
        "static": static(set()),
    }


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Gives calibration data one run after the other, as ONNX Runtime asks for it."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def _weights(graph: ModelProto, *kinds: str, skip: set[str]) -> dict[str, int]:
    """Nodes of some kinds that have weights, with how many."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.graph.initializer}
    return {
        node.name: sum(sizes.get(name, 0) for name in node.input)
        for node in graph.graph.node
        if node.op_type in kinds and node.name not in skip and len(sizes.keys() & set(node.input[1:2]))
    }


def _widest(graph: ModelProto, products: Sequence[str], feeds: Sequence[Feed]) -> list[str]:
    """Products by how coarse 256 steps are for their inputs, the coarsest first: the range beside the root mean square."""
    inputs = {node.name: node.input[0] for node in graph.graph.node if node.name in set(products)}
    watched = list(dict.fromkeys(inputs[name] for name in products))
    probe = ModelProto()
    probe.CopyFrom(graph)
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in watched)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    coarse: dict[str, list[float]] = {name: [] for name in watched}
    for feed in feeds[:LOOKED_AT]:
        for name, value in zip(watched, session.run(watched, dict(feed)), strict=True):
            size = float(np.sqrt(np.square(value, dtype=np.float64).mean()))
            coarse[name].append((max(float(value.max()), 0.0) - min(float(value.min()), 0.0)) / max(size, 1e-12))
    return sorted(products, key=lambda name: -float(np.mean(coarse[inputs[name]])) if feeds else 0.0)


def _sensitive(graph: ModelProto) -> set[str]:
    """The first convolution, those with a filter for each channel, and the last product: few weights, and much of the loss."""
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    products = [node.name for node in graph.graph.node if node.op_type in PRODUCTS]
    depthwise = {node.name for node in convolutions if _groups(node) > 1}
    return {convolutions[0].name, *products[-1:], *depthwise}


def _groups(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


@contextlib.contextmanager
def _still() -> Iterator[None]:
    """Silence the quantiser, which writes to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        root.setLevel(level)
