"""Build the graphs of every requested format, each in a cached step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from vigil_data import json_fields
from vigil_data.filesystem import remove, write_json
from vigil_data.items import ROLES, Modality
from vigil_data.specs import Inputs
from vigil_modeling.guards.guard_model import GuardModel
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.bundle.decisions_graph import decisions_graph
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.manifest import read_json
from vigil_serving.bundle.metadata import Graph, TensorSpec
from vigil_serving.export import float16, onnx_export, torch_export, torchscript
from vigil_serving.export.modules import ExampleInputs, GuardExample, example_inputs, guard_example, input_names
from vigil_serving.export.step_cache import Step, StepCache, link_files
from vigil_serving.parity.backends import BFLOAT16_SUFFIX, program_name
from vigil_serving.specs import ExportSpec

GRAPHS = "graphs.json"
"""File in a step's folder with the inputs and outputs of its graphs; it does not enter the bundle."""


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A graph and the step that built it."""

    graph: Graph
    step: Step


@dataclass(frozen=True, slots=True)
class BuiltGraphs:
    """Graphs of an export.

    Attributes:
        folder: folder of the files.
        modalities: modalities that the model takes, in the order of the graphs' inputs.
        graphs: name to graph.
        variants: name to the graph of each modality's encoder.
    """

    folder: Path
    modalities: tuple[Modality, ...]
    graphs: Mapping[str, BuiltGraph]
    variants: Mapping[str, Mapping[str, str]]

    def steps(self) -> list[Step]:
        """Return the steps that built the graphs, each once."""
        return list({built.step.name: built.step for built in self.graphs.values()}.values())

    def without(self, variant: str) -> "BuiltGraphs":
        """Return the graphs without those of a variant."""
        dropped = {name for name in self.variants.get(variant, {}).values() if name.endswith(f".{variant}")}
        graphs = {name: built for name, built in self.graphs.items() if name not in dropped}
        variants = {name: encoders for name, encoders in self.variants.items() if name != variant}
        return BuiltGraphs(self.folder, self.modalities, graphs, variants)


def build_graphs(network: MultimodalModel, inputs: Inputs, spec: ExportSpec, cache: StepCache) -> BuiltGraphs:
    """Build every requested format except int8, which is chosen by measurement (:mod:`vigil_serving.export.int8`).

    Args:
        network: the trained model, in evaluation mode.
        inputs: how its media are decoded.
        spec: formats and opset.
        cache: runs the steps.
    """
    folder = cache.folder / "bundle"
    remove(folder)
    variants: dict[str, dict[str, str]] = {"fp32": {m: m for m in network.modalities}}
    builder: OnnxBuilder
    if isinstance(network, GuardModel):
        builder = GuardBuilder(network, guard_example(network, inputs), spec.opset, cache, folder)
        graphs = builder.build_onnx()
    else:
        assert isinstance(network, SafetyModel)
        builder = FusionBuilder(network, example_inputs(network, inputs), spec.opset, cache, folder)
        graphs = builder.build(spec)
    if spec.has("fp16"):
        graphs |= builder.build_float16(graphs)
        variants["fp16"] = {m: f"{m}.fp16" for m in network.modalities}
    return BuiltGraphs(folder, network.modalities, graphs, variants)


class OnnxBuilder(ABC):
    """Builds the ONNX graphs of one model; each method returns name to graph.

    Args:
        network: the trained model.
        opset: ONNX opset.
        cache: runs the steps.
        folder: where the files of all steps are linked.
    """

    def __init__(self, network: MultimodalModel, opset: int, cache: StepCache, folder: Path) -> None:
        self.modalities, self.opset, self.cache, self.folder = network.modalities, opset, cache, folder

    @abstractmethod
    def encoder(self, modality: Modality) -> onnx.ModelProto:
        """Return the encoder of a modality."""

    @abstractmethod
    def fusion(self) -> onnx.ModelProto:
        """Return the graph that gives the probabilities."""

    def build_onnx(self) -> dict[str, BuiltGraph]:
        """Build the ONNX encoders and fusion, which every bundle has."""
        built: dict[str, BuiltGraph] = {}
        for modality in self.modalities:

            def encoder(to: Path, m: Modality = modality) -> dict[str, Graph]:
                return _write_onnx(self.encoder(m), m, to)

            built |= self._step(f"ONNX {modality} encoder", encoder, {"opset": self.opset})
        return built | self._step("ONNX fusion", lambda to: _write_onnx(self.fusion(), "fusion", to), {"opset": self.opset})

    def build_float16(self, graphs: Mapping[str, BuiltGraph]) -> dict[str, BuiltGraph]:
        """Convert the ONNX encoders to float16."""
        built: dict[str, BuiltGraph] = {}
        for modality in self.modalities:

            def encoder(to: Path, m: Modality = modality) -> dict[str, Graph]:
                return _write_onnx(float16.convert_to_float16(self._file(graphs[m])), f"{m}.fp16", to)

            built |= self._step(f"ONNX {modality} encoder, fp16", encoder, after={modality: graphs[modality]})
        return built

    def _step(
        self,
        name: str,
        build: Callable[[Path], Mapping[str, Graph]],
        depends_on: Mapping[str, object] | None = None,
        after: Mapping[str, BuiltGraph] | None = None,
    ) -> dict[str, BuiltGraph]:
        """Build graphs in a cached step, and link their files.

        Args:
            name: name of the step.
            build: writes the files into a folder and returns the graphs.
            depends_on: what the graphs depend on besides what all steps do.
            after: graphs that they are built from.
        """
        steps = [one.step for one in (after or {}).values()]
        return _build_step(self.cache, self.folder, name, build, depends_on=depends_on, after=steps)

    def _file(self, built: BuiltGraph) -> Path:
        return self.folder / built.graph.file


class GuardBuilder(OnnxBuilder):
    """Builds the graphs of a guard: its language model in place of an encoder of text; see :class:`OnnxBuilder`."""

    def __init__(self, guard: GuardModel, example: GuardExample, opset: int, cache: StepCache, folder: Path) -> None:
        super().__init__(guard, opset, cache, folder)
        self.guard, self.example = guard, example

    def encoder(self, modality: Modality) -> onnx.ModelProto:
        """Return the language model, or the encoder of pictures or sound."""
        if modality == "text":
            return onnx_export.language_model_graph(self.guard, self.example, opset=self.opset)
        return onnx_export.encoder_graph(self.guard, modality, self.example, opset=self.opset)

    def fusion(self) -> onnx.ModelProto:
        """Return the graph from log-odds to probabilities."""
        return onnx_export.answers_graph(self.guard, self.example, opset=self.opset)


class FusionBuilder(OnnxBuilder):
    """Builds the graphs of a fusion model in every format; see :class:`OnnxBuilder`."""

    def __init__(self, network: SafetyModel, example: ExampleInputs, opset: int, cache: StepCache, folder: Path) -> None:
        super().__init__(network, opset, cache, folder)
        self.network, self.example = network, example

    def encoder(self, modality: Modality) -> onnx.ModelProto:
        """Return the encoder of a modality."""
        return onnx_export.encoder_graph(self.network, modality, self.example, opset=self.opset)

    def fusion(self) -> onnx.ModelProto:
        """Return the fusion."""
        return onnx_export.fusion_graph(self.network, self.example, opset=self.opset)

    def build(self, spec: ExportSpec) -> dict[str, BuiltGraph]:
        """Build the requested formats but float16."""
        onnx_graphs = self.build_onnx()
        graphs = dict(onnx_graphs)
        if spec.has("onnx-single"):
            graphs |= self.build_single(onnx_graphs)
        if spec.has("torchscript"):
            graphs |= self.build_torchscript(onnx_graphs)
        if suffixes := ("",) * spec.has("torch-export") + (BFLOAT16_SUFFIX,) * spec.has("bf16"):
            graphs |= self.build_programs(onnx_graphs, suffixes)
        return graphs

    def build_single(self, graphs: Mapping[str, BuiltGraph]) -> dict[str, BuiltGraph]:
        """Join the ONNX encoders and fusion into one graph."""

        def single(to: Path) -> dict[str, Graph]:
            encoders = {m: onnx.load(self._file(graphs[m])) for m in self.network.modalities}
            joined = onnx_export.single_graph(encoders, onnx.load(self._file(graphs["fusion"])))
            written = _write_onnx(joined, "model", to)
            onnx.checker.check_model(to / written["model"].file)
            return written

        return self._step("ONNX single graph", single, after=graphs)

    def build_torchscript(self, graphs: Mapping[str, BuiltGraph]) -> dict[str, BuiltGraph]:
        """Trace the complete model."""
        inputs, outputs = _all_inputs(graphs, self.network), graphs["fusion"].graph.outputs

        def traced(to: Path) -> dict[str, Graph]:
            file = _with_folder(to, "torchscript/model.pt")
            torchscript.save_torchscript(self.network, self.example, to / file)
            return {"torchscript": Graph(file, inputs, outputs)}

        return self._step("TorchScript", traced)

    def build_programs(self, graphs: Mapping[str, BuiltGraph], suffixes: tuple[str, ...]) -> dict[str, BuiltGraph]:
        """Export ``torch.export`` programs: the encoders in each requested precision, and the fusion."""
        built: dict[str, BuiltGraph] = {}
        for modality in self.network.modalities:
            for suffix in suffixes:

                def encoder(to: Path, m: Modality = modality, suffix: str = suffix) -> dict[str, Graph]:
                    file = _with_folder(to, f"torch_export/{m}{suffix}.pt2")
                    torch_export.save_encoder(self.network, m, self.example, to / file, bfloat16=bool(suffix))
                    graph = graphs[m].graph  # a program gives no spans
                    return {program_name(m) + suffix: Graph(file, graph.inputs, {"tokens": graph.outputs["tokens"]})}

                built |= self._step(f"torch.export {modality} encoder{suffix.replace('.', ', ')}", encoder)

        def fusion(to: Path) -> dict[str, Graph]:
            file = _with_folder(to, "torch_export/fusion.pt2")
            torch_export.save_fusion(self.network, self.example, to / file)
            return {program_name("fusion"): Graph(file, graphs["fusion"].graph.inputs, graphs["fusion"].graph.outputs)}

        return built | self._step("torch.export fusion", fusion)


def add_decisions(built: BuiltGraphs, model: ExportedModel, opset: int, fingerprint: str, cache: StepCache) -> BuiltGraphs:
    """Add the graph of calibration, thresholds and policy, which every bundle has.

    Args:
        built: the graphs of the encoders and the fusion.
        model: the same as a model, with its calibration, thresholds and policy.
        opset: ONNX opset.
        fingerprint: digest of calibration, thresholds and policy.
        cache: runs the step.
    """

    def decisions(to: Path) -> dict[str, Graph]:
        proto, codes = decisions_graph(model, opset=opset)
        return {name: replace(graph, codes=codes) for name, graph in _write_onnx(proto, "decisions", to).items()}

    depends_on = {"opset": opset, "decisions": fingerprint}
    added = _build_step(cache, built.folder, "ONNX decisions", decisions, depends_on=depends_on)
    return BuiltGraphs(built.folder, built.modalities, {**built.graphs, **added}, built.variants)


def _build_step(
    cache: StepCache,
    folder: Path,
    name: str,
    build: Callable[[Path], Mapping[str, Graph]],
    *,
    depends_on: Mapping[str, object] | None = None,
    after: Sequence[Step] = (),
) -> dict[str, BuiltGraph]:
    """Build graphs in a cached step, and link their files into ``folder``."""

    def make(to: Path) -> None:
        write_json(to / GRAPHS, {graph: asdict(_with_role_codes(spec)) for graph, spec in build(to).items()})

    step = cache.run(name, make, depends_on=depends_on, after=after)
    link_files(step, folder, skip=GRAPHS)
    specs = read_json(step.folder / GRAPHS).items()
    return {graph: BuiltGraph(json_fields.structure(Graph, spec, GRAPHS), step) for graph, spec in specs}


def _with_role_codes(graph: Graph) -> Graph:
    """Return a graph with the roles that each of its inputs of roles stands for."""
    return replace(graph, codes={**graph.codes, **{name: ROLES for name in graph.inputs if name.endswith("_role")}})


def _write_onnx(proto: onnx.ModelProto, name: str, to: Path) -> dict[str, Graph]:
    file = _with_folder(to, f"onnx/{name}.onnx")
    onnx_export.save_graph(proto, to / file)
    return {name: Graph(file, *onnx_export.tensor_specs(proto))}


def _all_inputs(graphs: Mapping[str, BuiltGraph], network: SafetyModel) -> dict[str, TensorSpec]:
    """Return the inputs, in order, of a graph that takes all modalities."""
    inputs = dict(graphs["fusion"].graph.inputs)
    for modality in network.modalities:
        for name, spec in graphs[modality].graph.inputs.items():
            inputs[name] = TensorSpec(spec.dtype, (f"{modality}_segments", *spec.shape[1:]))
    return {name: inputs[name] for name in input_names(network, fused=False)}


def _with_folder(to: Path, file: str) -> str:
    """Make the folder of a file, and return the file."""
    (to / file).parent.mkdir(parents=True, exist_ok=True)
    return file
