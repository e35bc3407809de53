"""The graphs of a bundle, each made in a step of its own that a later start takes over."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import onnx
import torch
from torch import Tensor

from vigil_data import json_fields
from vigil_data.items import Modality
from vigil_data.specs import Inputs
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.bundle.manifest import read_json, write_json
from vigil_serving.bundle.metadata import Graph, TensorFacts
from vigil_serving.export import float16, onnx_export, torch_export, torchscript
from vigil_serving.export.modules import ENCODER_INPUTS, example_inputs, input_names
from vigil_serving.export.step_cache import Steps
from vigil_serving.parity.backends import BFLOAT16, archive
from vigil_serving.specs import ExportSpec

FACTS = "graphs.json"
"""In a step's folder: what its graphs take and give. It does not enter the bundle."""


@dataclass
class GraphBuilder:
    """What has been made so far.

    Attributes:
        steps: does them.
        folder: the bundle in the making; files of every step are placed in it.
        graphs: name to file and tensors.
        variants: name to the graph of each encoder.
        step_of: graph to the step that made it.
    """

    steps: Steps
    folder: Path
    graphs: dict[str, Graph] = field(default_factory=dict)
    variants: dict[str, dict[str, str]] = field(default_factory=dict)
    step_of: dict[str, str] = field(default_factory=dict)

    def step(
        self,
        name: str,
        make: Callable[[Path], Mapping[str, Graph]],
        *,
        of: Mapping[str, object] | None = None,
        after: tuple[str, ...] = (),
    ) -> None:
        """Make graphs, or take over what an earlier start made of them, and place them in the bundle.

        Args:
            name: of the step.
            make: writes the graphs' files into a folder and says what they take and give.
            of: what they are made from beside what all are.
            after: steps that they are made from.
        """

        def made(folder: Path) -> None:
            write_json(folder / FACTS, {graph: asdict(facts) for graph, facts in make(folder).items()})

        step = self.steps.run(name, made, of=of, after=after)
        for graph, facts in read_json(step / FACTS).items():
            self.graphs[graph] = json_fields.structure(Graph, facts, FACTS)
            self.step_of[graph] = name
        self.steps.place(step, self.folder, skip=FACTS)


def make_graphs(model: SafetyModel, inputs: Inputs, spec: ExportSpec, making: GraphBuilder) -> None:
    """Make every form that is asked for, but int8, which needs to be measured.

    Args:
        model: in evaluation mode.
        inputs: how its media are decoded.
        spec: forms and opset.
        making: where to.
    """
    rows, encoder_inputs, items = example_inputs(inputs, model.modalities)
    with torch.no_grad():
        tokens = {m: model.encode(m, **dict(zip(ENCODER_INPUTS[m], encoder_inputs[m], strict=True))) for m in model.modalities}
    _onnx(model, spec.opset, (rows, encoder_inputs, tokens, items), making)
    modalities = model.modalities
    whole = _whole(making.graphs, modalities)
    if "onnx-single" in spec.formats:
        making.step("ONNX single graph", lambda to: _single(making, modalities, to), after=_steps(making, *modalities, "fusion"))
    if "torchscript" in spec.formats:

        def traced(to: Path) -> dict[str, Graph]:
            file = _file(to, "torchscript/model.pt")
            torchscript.save(model, modalities, rows, encoder_inputs, items, to=to / file)
            return {"torchscript": Graph(file, *whole)}

        making.step("TorchScript", traced)
    if "torch-export" in spec.formats or "bf16" in spec.formats:
        endings = ("",) * ("torch-export" in spec.formats) + (BFLOAT16,) * ("bf16" in spec.formats)
        _programs(model, endings, (rows, encoder_inputs, tokens, items), making)
    if "fp16" in spec.formats:
        for modality in modalities:
            making.step(f"ONNX {modality} encoder, fp16", partial(_float16, making, modality), after=_steps(making, modality))
        making.variants["fp16"] = {m: f"{m}.fp16" for m in modalities}


def write_graph(proto: onnx.ModelProto, name: str, to: Path) -> dict[str, Graph]:
    """Write an ONNX graph as the bundle names it, and say what it takes and gives."""
    file = _file(to, f"onnx/{name}.onnx")
    onnx.save(proto, to / file)
    return {name: Graph(file, *onnx_export.facts(proto))}


Examples = tuple[Tensor, Mapping[Modality, tuple[Tensor, ...]], Mapping[Modality, Tensor], Mapping[Modality, Tensor]]
"""Rows, the encoders' inputs, their tokens, and the rows of the segments' items."""


def _onnx(model: SafetyModel, opset: int, examples: Examples, making: GraphBuilder) -> None:
    """The encoders and the fusion, which every bundle has."""
    rows, encoder_inputs, tokens, items = examples
    for modality in model.modalities:

        def encoder(to: Path, m: Modality = modality) -> dict[str, Graph]:
            return write_graph(onnx_export.encoder_graph(model, m, encoder_inputs[m], opset=opset), m, to)

        making.step(f"ONNX {modality} encoder", encoder, of={"opset": opset})
    making.step(
        "ONNX fusion",
        lambda to: write_graph(onnx_export.fusion_graph(model, model.modalities, rows, tokens, items, opset=opset), "fusion", to),
        of={"opset": opset},
    )
    making.variants["fp32"] = {m: m for m in model.modalities}


def _programs(model: SafetyModel, endings: tuple[str, ...], examples: Examples, making: GraphBuilder) -> None:
    """The programs of torch.export: encoders in the precisions asked for, and the fusion."""
    rows, encoder_inputs, tokens, items = examples
    for modality in model.modalities:
        for ending in endings:

            def encoder(to: Path, m: Modality = modality, ending: str = ending) -> dict[str, Graph]:
                file = _file(to, f"torch_export/{m}{ending}.pt2")
                torch_export.save_encoder(model, m, encoder_inputs[m], to / file, bfloat16=bool(ending))
                return {archive(m) + ending: Graph(file, making.graphs[m].inputs, making.graphs[m].outputs)}

            making.step(f"torch.export {modality} encoder{ending.replace('.', ', ')}", encoder)

    def fusion(to: Path) -> dict[str, Graph]:
        file = _file(to, "torch_export/fusion.pt2")
        torch_export.save_fusion(model, rows, tokens, items, to / file)
        return {archive("fusion"): Graph(file, making.graphs["fusion"].inputs, making.graphs["fusion"].outputs)}

    making.step("torch.export fusion", fusion)


def _single(making: GraphBuilder, modalities: tuple[Modality, ...], to: Path) -> dict[str, Graph]:
    protos = {name: onnx.load(making.folder / making.graphs[name].file) for name in (*modalities, "fusion")}
    fusion = protos.pop("fusion")
    return write_graph(onnx_export.single_graph({m: protos[m] for m in modalities}, fusion), "model", to)


def _float16(making: GraphBuilder, modality: Modality, to: Path) -> dict[str, Graph]:
    proto = float16.float16(onnx.load(making.folder / making.graphs[modality].file))
    return write_graph(proto, f"{modality}.fp16", to)


def _whole(
    graphs: Mapping[str, Graph], modalities: tuple[Modality, ...]
) -> tuple[dict[str, TensorFacts], dict[str, TensorFacts]]:
    """What a form takes and gives that takes everything at once, in order."""
    taken = dict(graphs["fusion"].inputs)
    for modality in modalities:
        for name, facts in graphs[modality].inputs.items():
            taken[name] = TensorFacts(facts.dtype, (f"{modality}_segments", *facts.shape[1:]))
    return {name: taken[name] for name in input_names(modalities, fused=False)}, dict(graphs["fusion"].outputs)


def _steps(making: GraphBuilder, *graphs: str) -> tuple[str, ...]:
    return tuple(making.step_of[graph] for graph in graphs)


def _file(to: Path, file: str) -> str:
    """``file``, whose folder is there then."""
    (to / file).parent.mkdir(parents=True, exist_ok=True)
    return file
