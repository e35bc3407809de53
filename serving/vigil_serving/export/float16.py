"""Conversion of ONNX encoders to float16; inputs and outputs stay float32."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from vigil_serving.export.modules import quiet

ROOT_MEAN_SQUARE = ("Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal")
"""Nodes of a norm, from the square to the factor."""


def convert_to_float16(encoder: Path) -> ModelProto:
    """Return an encoder of a file in float16, except for its spectrogram (see :func:`spectrogram_nodes`) and :func:`wide_nodes`.

    ONNX Runtime's CPU kernels are float32: the weights are widened when they are loaded, so only the file is smaller. On a GPU
    the products run in float16.
    """
    from onnxruntime.transformers import float16 as converter

    graph = onnx.load(encoder)
    with quiet():
        found: ModelProto = converter.convert_float_to_float16(
            str(encoder),  # its shapes are inferred from the file, which has no limit of size
            keep_io_types=True,
            # ONNX Runtime cannot add up float16 in ScatterElements, which gives the evidence of a guard.
            op_block_list=[*converter.DEFAULT_OP_BLOCK_LIST, "STFT", "ScatterElements"],
            node_block_list=sorted(spectrogram_nodes(graph) | wide_nodes(graph)),
        )
    _without_round_trips(found)
    return found


def _without_round_trips(graph: ModelProto) -> None:
    """Connect float32 nodes directly where the converter inserted casts to float16 and back, which overflow."""
    nodes = graph.graph.node
    casts = {node.output[0]: (node.input[0], node.attribute[0].i) for node in nodes if node.op_type == "Cast"}
    direct = {}
    for output, (taken, to) in casts.items():
        inner = casts.get(taken)
        if to == TensorProto.FLOAT and inner is not None and inner[1] == TensorProto.FLOAT16:
            direct[output] = inner[0]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = direct.get(name, name)
    while dead := _unused_casts(graph):
        for node in dead:
            nodes.remove(node)


def _unused_casts(graph: ModelProto) -> list[NodeProto]:
    used = {name for node in graph.graph.node for name in node.input} | {value.name for value in graph.graph.output}
    return [node for node in graph.graph.node if node.op_type == "Cast" and node.output[0] not in used]


def spectrogram_nodes(graph: ModelProto) -> set[str]:
    """Return the names of an encoder's spectrogram nodes: those before the first convolution after a logarithm.

    The power of sound spans more orders of magnitude than a narrow type holds, and silence is divided by a very small number.
    """
    maker = {output: node for node in graph.graph.node for output in node.output}
    logs = [node for node in graph.graph.node if node.op_type == "Log"]
    if not logs:
        return set()
    for node in graph.graph.node:
        if node.op_type == "Conv" and logs[-1].name in (before := _ancestors([node], maker)):
            return before
    return _ancestors(logs, maker) | {node.name for node in logs}


def wide_nodes(graph: ModelProto) -> set[str]:
    """Return the names of nodes whose values exceed the range or the precision of float16.

    They are the root mean squares of norms (the square of a decoder's largest activations overflows), and the angles of rotary
    embeddings, which are as large as the position.
    """
    users: dict[str, list[NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: set[str] = set()
    for node in graph.graph.node:
        chain = [node] if node.op_type == "Pow" else []
        while chain and chain[-1].op_type in ROOT_MEAN_SQUARE:
            found.add(chain[-1].name)
            chain += users.get(chain[-1].output[0], [])[:1]
    maker = {output: node for node in graph.graph.node for output in node.output}
    angles = [node for node in graph.graph.node if node.op_type in {"Cos", "Sin"}]
    return found | {node.name for node in angles} | _ancestors(angles, maker)


def _ancestors(nodes: Iterable[NodeProto], maker: Mapping[str, NodeProto]) -> set[str]:
    """Return the names of all nodes that these depend on."""
    found: set[str] = set()
    ahead = [name for node in nodes for name in node.input]
    while ahead:
        node = maker.get(ahead.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            ahead += node.input
    return found
