"""The variant ``int8``: quantize each encoder in several ways, measure them, and keep the fastest within the tolerance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import onnx

from vigil_data import json_fields
from vigil_data.decode import Decoder
from vigil_data.filesystem import link_or_copy, write_json
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import pack
from vigil_serving.bundle.load import ExportedModel, weights_file
from vigil_serving.bundle.manifest import read_json
from vigil_serving.bundle.metadata import Candidate, Graph
from vigil_serving.export import quantization
from vigil_serving.export.graph_builder import BuiltGraph, BuiltGraphs
from vigil_serving.export.onnx_export import save_graph
from vigil_serving.export.quantization_selection import Fp32Baseline, fp32_baseline, select
from vigil_serving.export.reference import DecisionSettings, Reference, cases_fingerprint, exported_model
from vigil_serving.export.step_cache import Step, StepCache, items_fingerprint
from vigil_serving.parity.cases import real_cases
from vigil_serving.runtime.onnx_sessions import Sessions, open_session, prompt_runs
from vigil_serving.specs import ExportSpec, Int8Spec

GRAPH, FAILED, CANDIDATES = "graph.onnx", "failed.json", "candidates.json"
NO_CASES = Reference()
TIMED_ITEMS = 8
"""Items whose segments make one run when candidates are timed."""
TIMED_RUNS = 16
"""Runs in one pass of timing."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """Result of the quantization.

    Attributes:
        built: graphs of every requested format, with the variant ``int8`` if any encoder gains by it.
        candidates: what was tried.
        further: further real cases on which int8 was measured, with the outputs of the float32 graphs.
    """

    built: BuiltGraphs
    candidates: tuple[Candidate, ...] = ()
    further: Reference = NO_CASES


def quantize(
    built: BuiltGraphs,
    reference: Reference,
    measure: Sequence[Item],
    calibration: Sequence[Item],
    *,
    settings: DecisionSettings,
    spec: ExportSpec,
    cache: StepCache,
) -> Quantization:
    """Choose the quantization of each encoder, if int8 is requested.

    Args:
        built: the float graphs.
        reference: cases of the gate; candidates are measured on the real ones and on ``measure``.
        measure: further real items.
        calibration: other real items, on which quantization finds ranges and candidates are timed.
        settings: calibration, thresholds and policy.
        spec: requested formats and tolerances.
        cache: runs the steps.
    """
    if not spec.has("int8"):
        return Quantization(built)
    model = exported_model(built, settings)
    with cache.timed("ONNX fp32 on the real items"):
        real = [case for case in reference.cases if case.real]
        further = real_cases(measure, Decoder(model.inputs, ()))
        baseline = fp32_baseline(model, [*real, *further], spec.int8.tolerance(), spec.int8.enough)
    candidates: list[Candidate] = []
    quantized: dict[str, BuiltGraph] = {}
    for modality in built.modalities:
        tried, steps = _try_candidates(modality, built, baseline, calibration, settings=settings, spec=spec.int8, cache=cache)
        candidates += tried
        chosen = next(candidate.name for candidate in tried if candidate.chosen)
        if chosen != "fp32":
            graph = Graph(f"onnx/{modality}.int8.onnx", model.graphs[modality].inputs, model.graphs[modality].outputs)
            _place(steps[chosen].folder / GRAPH, built.folder / graph.file)
            quantized[f"{modality}.int8"] = BuiltGraph(graph, steps[chosen])
    encoders: dict[str, str] = {m: f"{m}.int8" if f"{m}.int8" in quantized else m for m in built.modalities}
    int8: Mapping[str, Mapping[str, str]] = {"int8": encoders} if quantized else {}
    return Quantization(
        built=BuiltGraphs(built.folder, built.modalities, {**built.graphs, **quantized}, {**built.variants, **int8}),
        candidates=tuple(candidates),
        further=Reference(further, baseline.expected[len(real) :]),
    )


def _try_candidates(
    modality: Modality,
    built: BuiltGraphs,
    baseline: Fp32Baseline,
    calibration: Sequence[Item],
    *,
    settings: DecisionSettings,
    spec: Int8Spec,
    cache: StepCache,
) -> tuple[list[Candidate], dict[str, Step]]:
    """Make and measure the candidates for one encoder; return them, one chosen, and the steps that made them."""
    segments, batches = _feeds(modality, calibration, baseline.model, baseline.sessions)
    calibration_digest = items_fingerprint(calibration)
    steps = _make_candidates(
        modality,
        built.graphs[modality],
        baseline.model,
        segments,
        calibration_digest=calibration_digest,
        spec=spec,
        cache=cache,
    )
    files = {name: _graph_or_reason(step) for name, step in steps.items()}

    def measure(to: Path) -> None:
        found = select(modality, files, batches, baseline)
        write_json(to / CANDIDATES, [asdict(candidate) for candidate in found])

    depends_on = {
        "cases": cases_fingerprint(baseline.cases),
        "calibration": calibration_digest,
        "decisions": settings.fingerprint(),
        "spec": spec.model_dump(mode="json", exclude={"required"}),
    }
    used = [built.graphs[graph].step for graph in (*built.modalities, "fusion")]
    step = cache.run(f"int8 {modality} measured", measure, depends_on=depends_on, after=[*steps.values(), *used])
    return [json_fields.structure(Candidate, one, CANDIDATES) for one in read_json(step.folder / CANDIDATES)], steps


def _make_candidates(
    modality: Modality,
    encoder: BuiltGraph,
    model: ExportedModel,
    segments: Sequence[quantization.Feed],
    *,
    calibration_digest: str,
    spec: Int8Spec,
    cache: StepCache,
) -> dict[str, Step]:
    """Quantize one encoder in each way; return name to step."""
    file = model.path / encoder.graph.file
    prepared = cache.run(f"int8 {modality} prepared", lambda to: quantization.prepare(file, to / GRAPH), after=[encoder.step])
    steps = {}
    for name, quantizer in quantization.candidates(prepared.folder / GRAPH, spec.reduce_range).items():

        def make(to: Path, quantizer: quantization.Quantizer = quantizer) -> None:
            try:
                quantizer(segments, to / GRAPH)
                open_session(to / GRAPH)
            except Exception as error:  # a graph that the quantizer does not support is a row of the table, not a failed export
                for file in (to / GRAPH, weights_file(to / GRAPH)):
                    file.unlink(missing_ok=True)
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                write_json(to / FAILED, f"could not be made: {reason}")

        depends_on = {"reduce_range": spec.reduce_range, "calibration": calibration_digest}
        steps[name] = cache.run(f"int8 {modality}, {name}", make, depends_on=depends_on, after=[prepared])
    return steps


def _place(graph: Path, to: Path) -> None:
    """Link a graph under another name; one whose weights are in a file of their own names that file, and is written again."""
    if weights_file(graph).is_file():
        save_graph(onnx.load(graph), to)
    else:
        link_or_copy(graph, to)


def _graph_or_reason(step: Step) -> Path | str:
    """Return the file that a step made, or the reason why it made none."""
    return step.folder / GRAPH if (step.folder / GRAPH).is_file() else str(read_json(step.folder / FAILED))


def _feeds(
    modality: Modality, items: Sequence[Item], model: ExportedModel, sessions: Sessions
) -> tuple[list[quantization.Feed], list[quantization.Feed]]:
    """Return calibration data (single segments without padding, as many as items at most) and timing data (batches)."""
    if sessions.asks_with(modality):
        return prompt_feeds(items, model, sessions)
    decoder = Decoder(model.inputs, ())
    having = [item for item in items if getattr(item, modality)]
    segments: list[quantization.Feed] = []
    batches: list[quantization.Feed] = []
    for start in range(0, len(having), TIMED_ITEMS):
        packed = pack([decoder.decode(item) for item in having[start : start + TIMED_ITEMS]]).segments.get(modality)
        if packed is None:
            continue
        if len(batches) < TIMED_RUNS:
            batches.append(packed.inputs)
        mask = packed.inputs.get("attention_mask")
        for row in range(len(packed.item)):
            longest = None if mask is None else max(int(np.asarray(mask)[row].sum()), 1)
            segments.append({name: array[row : row + 1, :longest] for name, array in packed.inputs.items()})
    return segments[: len(items)], batches


def prompt_feeds(
    items: Sequence[Item], model: ExportedModel, sessions: Sessions
) -> tuple[list[quantization.Feed], list[quantization.Feed]]:
    """Return what a guard's language model reads of items: of each alone, at most as many runs as items, and of batches."""
    decoder = Decoder(model.inputs, ())

    def feeds(size: int, limit: int) -> list[quantization.Feed]:
        packed = (pack([decoder.decode(item) for item in items[n : n + size]]) for n in range(0, len(items), size))
        return list(islice(chain.from_iterable(prompt_runs(sessions, batch) for batch in packed), limit))

    return feeds(1, len(items)), feeds(TIMED_ITEMS, TIMED_RUNS)
