"""Backends of an exported model: what the gate of ``vigil export`` and ``vigil verify`` compare."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vigil_data.loading.packing import NO_SEGMENTS
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.parity.cases import Case
from vigil_serving.parity.compare import Backend, CaseDecisions, input_arrays, runtime_backend
from vigil_serving.runtime.onnx_sessions import open_session, open_sessions, run
from vigil_serving.runtime.scorer import Scorer

BFLOAT16_SUFFIX = ".bf16"
"""Suffix of the names of ``torch.export`` programs in bfloat16."""


def load_backends(model: ExportedModel) -> Iterator[Backend]:
    """Load each backend of a model in turn; those that need torch only where it is installed."""
    scorer = Scorer(model, cache_bytes=0)
    yield Backend(
        "ONNX, graph by graph",
        "fp32",
        lambda case: run(scorer.sessions, case.packed).probabilities_NL,
        _decisions_graph(model) if "decisions" in model.graphs else None,
    )
    yield runtime_backend(scorer)
    if "model" in model.graphs:
        single, inputs = open_session(model.graph("model")), model.graphs["model"].inputs
        yield Backend(
            "ONNX, single graph",
            "fp32",
            lambda case: np.asarray(single.run(["probabilities"], input_arrays(case.packed, inputs))[0]),
        )
    for variant in model.variants:
        if variant != "fp32":
            yield Backend(f"ONNX, {variant}", variant, _onnx_variant(model, variant))
    if find_spec("torch") is not None:
        if "torchscript" in model.graphs:
            yield Backend("TorchScript", "fp32", _torchscript(model))
        for suffix, name, variant in (("", "torch.export", "fp32"), (BFLOAT16_SUFFIX, "torch.export, bf16", "bf16")):
            if program_name(model.modalities[0]) + suffix in model.graphs:
                yield Backend(name, variant, _torch_export(model, suffix))


def _decisions_graph(model: ExportedModel) -> Callable[[Case, NDArray[np.floating]], CaseDecisions]:
    """Decide by the graph of calibration, thresholds and policy, without Vigil's own code for them."""
    session, graph = open_session(model.graph("decisions")), model.graphs["decisions"]

    def decide(case: Case, raw_NL: NDArray[np.floating]) -> CaseDecisions:
        columns = {
            name: np.array([_code(item.columns.get(name.removeprefix("column_")), values) for item in case.items], np.int64)
            for name, values in graph.codes.items()
        }
        packed = input_arrays(case.packed, graph.inputs)
        feeds = {**packed, **columns, "probabilities": raw_NL.astype(np.float32)}
        outputs = dict(zip(graph.outputs, session.run(list(graph.outputs), feeds), strict=True))
        actions: list[tuple[str, bool]] = []
        if model.policy is not None:
            names = model.policy.actions
            actions = [(names[a], r) for a, r in zip(outputs["action"].tolist(), outputs["review"].tolist(), strict=True)]
        return CaseDecisions(outputs["calibrated"], outputs["labels"], actions)

    return decide


def _code(value: object, values: Sequence[str]) -> int:
    return values.index(str(value)) if value is not None and str(value) in values else -1


def program_name(part: str) -> str:
    """Return the name of the ``torch.export`` program of a modality, or of ``fusion``, among a bundle's graphs."""
    return f"torch_export.{part}"


def load_torchscript(path: Path) -> Any:
    """Load a TorchScript module on the CPU."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]


def load_program(path: Path) -> Callable[..., Any]:
    """Load a ``torch.export`` program as a function of tensors."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Callable[..., Any] = torch.export.load(str(path)).module()
    return module


def _onnx_variant(model: ExportedModel, variant: str) -> Callable[[Case], NDArray[np.floating]]:
    sessions = open_sessions(model, variant=variant)
    return lambda case: run(sessions, case.packed).probabilities_NL


def _torchscript(model: ExportedModel) -> Callable[[Case], NDArray[np.floating]]:
    import torch

    module, inputs = load_torchscript(model.graph("torchscript")), model.graphs["torchscript"].inputs

    def probabilities(case: Case) -> NDArray[np.floating]:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(array) for array in input_arrays(case.packed, inputs).values()))
        return np.asarray(outputs[0].numpy())

    return probabilities


def _torch_export(model: ExportedModel, suffix: str) -> Callable[[Case], NDArray[np.floating]]:
    """Run the encoders' programs on the modalities that a batch has, then the fusion's."""
    import torch

    encoders = {m: load_program(model.graph(program_name(m) + suffix)) for m in model.modalities}
    fusion, fusion_inputs = load_program(model.graph(program_name("fusion"))), model.graphs[program_name("fusion")].inputs

    def probabilities(case: Case) -> NDArray[np.floating]:
        arguments = [torch.arange(len(case.packed.ids))]
        with torch.no_grad():
            for modality, encoder in encoders.items():
                segments = case.packed.segments.get(modality)
                if segments is None:
                    _, per_segment, width = fusion_inputs[f"{modality}_tokens"].shape
                    arguments.append(torch.zeros(0, int(per_segment), int(width)))
                else:
                    names = model.graphs[modality].inputs
                    arguments.append(encoder(*(torch.from_numpy(segments.inputs[name]) for name in names)))
                placement = (segments or NO_SEGMENTS).placement(modality, fusion_inputs)
                arguments += [torch.from_numpy(array) for array in placement.values()]
            return np.asarray(fusion(*arguments)[0].numpy())

    return probabilities
