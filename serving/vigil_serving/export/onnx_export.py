"""ONNX export: one graph for each encoder, one for the fusion, and all of them composed into a single graph.

The single graph holds each encoder in a branch of an ``If``, so it also runs only the encoders that a batch needs.

An ONNX file is one protobuf message, which holds at most 2 GiB. Weights of a larger graph are in a file of their own next to it,
ONNX's external data.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.compose
import torch
from onnx import ModelProto, TensorProto, helper
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from vigil_data.items import Modality
from vigil_modeling.guards.guard_model import GuardModel
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.bundle.load import weights_file
from vigil_serving.bundle.metadata import TensorSpec
from vigil_serving.export.modules import (
    ENCODER_GRAPHS,
    ENCODER_INPUTS,
    AnswersGraph,
    ExampleInputs,
    FusionGraph,
    GuardExample,
    LanguageModelGraph,
    MarkedTextGraph,
    input_names,
    output_names,
    quiet,
)
from vigil_serving.specs import OPSET

MAX_MESSAGE_BYTES = 2_000_000_000
"""Most bytes of weights in the graph's own file."""

ROW_AXES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("input_ids", "soft", "position", "block", "segment"), ("rows", "row_tokens")),
    "sees": ("rows", "blocks", "blocks"),
    **dict.fromkeys(("answer_row", "answer_column", "answer"), ("answers",)),
    "segments": ("segments",),
    "soft_tokens": ("soft_tokens",),
}
"""Free axes of the inputs of a guard's language model."""


def encoder_graph(
    network: MultimodalModel, modality: Modality, example: ExampleInputs | GuardExample, *, opset: int = OPSET
) -> ModelProto:
    """Export one encoder; the number of segments is dynamic, and for text the number of tokens.

    Args:
        network: the model, in evaluation mode.
        modality: modality of the encoder.
        example: inputs to trace with.
        opset: ONNX opset.
    """
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} if modality == "text" else {0: torch.export.Dim.DYNAMIC}
    names, arguments = ENCODER_INPUTS[modality], example.encoder_inputs[modality]
    marks = modality == "text" and network.spans is not None
    module = MarkedTextGraph(network) if marks else ENCODER_GRAPHS[modality](network)
    outputs = ["tokens", *(["spans"] if marks else [])]
    graph = _export(module, arguments, tuple(free for _ in names), (names, outputs), opset)
    axes = ["segments", "text_tokens"] if modality == "text" else ["segments"]
    _name_axes(graph, {**dict.fromkeys(names, axes), "tokens": ["segments"], "spans": axes})
    return graph


def fusion_graph(network: SafetyModel, example: ExampleInputs, *, opset: int = OPSET) -> ModelProto:
    """Export the fusion; the numbers of items and of each modality's segments are dynamic, and may be zero.

    Args:
        network: the model, in evaluation mode.
        example: inputs to trace with.
        opset: ONNX opset.
    """
    modalities, arguments = network.modalities, example.fusion_inputs()
    first = {0: torch.export.Dim.DYNAMIC}
    shapes = (first, tuple(first for _ in arguments[1:]))
    names = (input_names(network, fused=True), output_names(modalities))
    graph = _export(FusionGraph(network, modalities), arguments, shapes, names, opset)
    named = {f"{m}_{name}": [f"{m}_segments"] for m in modalities for name in ("tokens", *network.segment_inputs(m))}
    named |= {f"evidence_{m}": [f"{m}_segments"] for m in modalities}
    _name_axes(graph, {"rows": ["items"], "probabilities": ["items"], **named})
    return graph


def language_model_graph(guard: GuardModel, example: GuardExample, *, opset: int = OPSET) -> ModelProto:
    """Export the language model of a guard as one forward pass; all sizes of its rows are dynamic, and there is no cache.

    Args:
        guard: the guard, in evaluation mode.
        example: inputs to trace with.
        opset: ONNX opset.
    """
    free = tuple(dict.fromkeys(range(len(ROW_AXES[name])), torch.export.Dim.DYNAMIC) for name in example.rows)
    axes = {"logits": ["answers"], "evidence": ["segments"]} | ({} if guard.spans is None else {"spans": ["rows", "row_tokens"]})
    graph = _export(LanguageModelGraph(guard), tuple(example.rows.values()), (free,), (list(example.rows), list(axes)), opset)
    _name_axes(graph, {**{name: ROW_AXES[name] for name in example.rows}, **axes})
    return graph


def answers_graph(guard: GuardModel, example: GuardExample, *, opset: int = OPSET) -> ModelProto:
    """Export the step from a guard's log-odds to probabilities; see :func:`language_model_graph`."""
    free = ({0: torch.export.Dim.DYNAMIC},)
    graph = _export(AnswersGraph(guard), (example.logits,), free, (["logits"], ["probabilities"]), opset)
    _name_axes(graph, {"logits": ["items"], "probabilities": ["items"]})
    return graph


def single_graph(encoders: Mapping[Modality, ModelProto], fusion: ModelProto) -> ModelProto:
    """Compose the encoders and the fusion into one graph that takes all modalities.

    Args:
        encoders: graph of each encoder, in the model's order.
        fusion: graph of the fusion.
    """
    nodes, inputs, outputs = [], [fusion.graph.input[0]], list(fusion.graph.output)
    fusion_inputs = {value.name: value for value in fusion.graph.input}
    for modality, encoder in encoders.items():
        nodes += _encoder_if_present(modality, encoder, fusion_inputs[f"{modality}_tokens"])
        for value in encoder.graph.input:
            renamed = onnx.ValueInfoProto()
            renamed.CopyFrom(value)
            renamed.type.tensor_type.shape.dim[0].dim_param = f"{modality}_segments"
            inputs.append(renamed)
        inputs += [fusion_inputs[f"{modality}_{n}"] for n in ("item", "role", "time") if f"{modality}_{n}" in fusion_inputs]
    joined = helper.make_graph([*nodes, *fusion.graph.node], "model", inputs, outputs, initializer=fusion.graph.initializer)
    return helper.make_model(joined, opset_imports=fusion.opset_import, ir_version=fusion.ir_version, producer_name="vigil")


def save_graph(graph: ModelProto, to: Path) -> None:
    """Write a graph, and its weights into :func:`weights_file` if they are too large; they are then no longer in ``graph``."""
    if weight_bytes(graph) > MAX_MESSAGE_BYTES:
        onnx.save_model(graph, to, save_as_external_data=True, location=weights_file(to).name)
    else:
        onnx.save_model(graph, to)


def weight_bytes(graph: ModelProto) -> int:
    """Return the bytes of a graph's weights, those in branches included."""
    own = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    inner = (attribute.g for node in graph.graph.node for attribute in node.attribute if attribute.HasField("g"))
    return own + sum(len(tensor.raw_data) for branch in inner for tensor in branch.initializer)


def tensor_specs(graph: ModelProto) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Return the inputs and the outputs of a graph, in order."""
    return _specs(graph.graph.input), _specs(graph.graph.output)


def _specs(values: Sequence[onnx.ValueInfoProto]) -> dict[str, TensorSpec]:
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        found[value.name] = TensorSpec(dtype=helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape=shape)
    return found


def _encoder_if_present(modality: Modality, encoder: ModelProto, tokens: onnx.ValueInfoProto) -> list[onnx.NodeProto]:
    """Return nodes that compute ``MODALITY_tokens``: by the encoder if there is any segment, otherwise as no tokens."""
    own = onnx.compose.add_prefix(encoder, f"{modality}/", rename_inputs=False).graph
    _, per_segment, width = (axis.dim_value for axis in tokens.type.tensor_type.shape.dim)
    present = helper.make_graph(own.node, f"{modality}_present", [], [_untyped_shape(own.output[0])], initializer=own.initializer)
    shape = helper.make_tensor(f"{modality}/no_tokens_shape", TensorProto.INT64, [3], [0, per_segment, width])
    nothing = helper.make_node("ConstantOfShape", [shape.name], [f"{modality}/no_tokens"])
    absent_output = helper.make_tensor_value_info(nothing.output[0], TensorProto.FLOAT, None)
    absent = helper.make_graph([nothing], f"{modality}_absent", [], [absent_output], initializer=[shape])
    count, some = f"{modality}/segments", f"{modality}/some"
    return [
        helper.make_node("Size", [f"{modality}_item"], [count]),
        helper.make_node("Cast", [count], [some], to=TensorProto.BOOL),
        helper.make_node("If", [some], [tokens.name], then_branch=present, else_branch=absent),
    ]


def _untyped_shape(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return a value without its shape, since the branches of an ``If`` differ in shape."""
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None)


def _name_axes(graph: ModelProto, axes: Mapping[str, Sequence[str]]) -> None:
    """Name the leading axes of inputs and outputs by what they count, in place of the exporter's symbols."""
    for value in [*graph.graph.input, *graph.graph.output]:
        for position, name in enumerate(axes[value.name]):
            value.type.tensor_type.shape.dim[position].dim_param = name
    del graph.graph.value_info[:]  # intermediate shapes use the former symbols; ONNX Runtime infers its own


def _export(
    module: nn.Module, arguments: tuple[Tensor, ...], shapes: Any, names: tuple[Sequence[str], Sequence[str]], opset: int
) -> ModelProto:
    inputs, outputs = names
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            arguments,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        # It inlines all functions, too. torch's own optimization also fuses rotary embeddings into a node that needs cosines for
        # each row of the batch, and ModernBERT has one row for all: the graph would accept batches of one only.
        optimize_ir(program.model)
    proto: ModelProto = program.model_proto
    return proto
