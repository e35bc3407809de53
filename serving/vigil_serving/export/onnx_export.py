"""ONNX: a graph for each encoder, one for the fusion, and all of them composed into a single graph.

The single graph holds each encoder in the branch of an ``If``, so it too runs only what a batch has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx.compose
import onnx.inliner
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from vigil_data.items import Modality
from vigil_serving.bundle.metadata import TensorFacts
from vigil_serving.export.modules import ENCODER_GRAPHS, ENCODER_INPUTS, FusionGraph, input_names, output_names, quiet
from vigil_serving.specs import OPSET


def encoder_graph(model: Any, modality: Modality, arguments: tuple[Tensor, ...], *, opset: int = OPSET) -> ModelProto:
    """Export one encoder; segments are free, and for text their tokens.

    Args:
        model: the :class:`~vigil_modeling.safety_model.SafetyModel`, in evaluation mode.
        modality: which encoder.
        arguments: example inputs.
        opset: of ONNX.
    """
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} if modality == "text" else {0: torch.export.Dim.DYNAMIC}
    names = ENCODER_INPUTS[modality]
    graph = _export(ENCODER_GRAPHS[modality](model), arguments, tuple(free for _ in names), (names, ["tokens"]), opset)
    axes = ["segments", "text_tokens"] if modality == "text" else ["segments"]
    _name_axes(graph, {**dict.fromkeys(names, axes), "tokens": ["segments"]})
    return graph


def fusion_graph(
    model: Any,
    modalities: tuple[Modality, ...],
    rows: Tensor,
    tokens: Mapping[Modality, Tensor],
    items: Mapping[Modality, Tensor],
    *,
    opset: int = OPSET,
) -> ModelProto:
    """Export the fusion; items and the segments of each modality are free, zero included.

    Args:
        model: see :func:`encoder_graph`.
        modalities: the model's modalities, in order.
        rows: int64 ``[N]``.
        tokens: of each modality ``[S_m, P_m, D]``.
        items: of each modality int64 ``[S_m]``.
        opset: of ONNX.
    """
    first = {0: torch.export.Dim.DYNAMIC}
    arguments = (rows, *(tensor for m in modalities for tensor in (tokens[m], items[m])))
    shapes = (first, tuple(first for _ in arguments[1:]))
    names = (input_names(modalities, fused=True), output_names(modalities))
    graph = _export(FusionGraph(model, modalities), arguments, shapes, names, opset)
    segments = {m: [f"{m}_segments"] for m in modalities}
    named = {name.format(m): axes for m, axes in segments.items() for name in ("{}_tokens", "{}_item", "evidence_{}")}
    _name_axes(graph, {"rows": ["items"], "probabilities": ["items"], **named})
    return graph


def single_graph(encoders: Mapping[Modality, ModelProto], fusion: ModelProto) -> ModelProto:
    """Compose the encoders and the fusion into one graph that takes everything at once.

    Args:
        encoders: the model's encoders, in order.
        fusion: the graph that joins them.
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
        inputs.append(fusion_inputs[f"{modality}_item"])
    joined = helper.make_graph([*nodes, *fusion.graph.node], "model", inputs, outputs, initializer=fusion.graph.initializer)
    model = helper.make_model(joined, opset_imports=fusion.opset_import, ir_version=fusion.ir_version, producer_name="vigil")
    onnx.checker.check_model(model)
    return model


def facts(graph: ModelProto) -> tuple[dict[str, TensorFacts], dict[str, TensorFacts]]:
    """The inputs and outputs of a graph, in order."""
    return _facts(graph.graph.input), _facts(graph.graph.output)


def _facts(values: Sequence[onnx.ValueInfoProto]) -> dict[str, TensorFacts]:
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        found[value.name] = TensorFacts(dtype=helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape=shape)
    return found


def _encoder_if_present(modality: Modality, encoder: ModelProto, tokens: onnx.ValueInfoProto) -> list[onnx.NodeProto]:
    """Nodes that compute ``MODALITY_tokens``: by the encoder if there is any segment, and else no tokens."""
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
    """The same value without a shape: the branches of an ``If`` differ in theirs."""
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None)


def _name_axes(graph: ModelProto, axes: Mapping[str, Sequence[str]]) -> None:
    """Give the leading axes of inputs and outputs names that say what they count, in place of the exporter's symbols."""
    for value in [*graph.graph.input, *graph.graph.output]:
        for position, name in enumerate(axes[value.name]):
            value.type.tensor_type.shape.dim[position].dim_param = name
    del graph.graph.value_info[:]  # intermediate shapes speak of the former symbols; ONNX Runtime infers its own


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
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return onnx.inliner.inline_local_functions(program.model_proto)
