"""The variant ``int8``: for each encoder candidates are made and measured, and the one that serves is put into the bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vigil_data import json_fields
from vigil_data.decode import Decoder
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import pack
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.manifest import read_json, write_json
from vigil_serving.bundle.metadata import Candidate, Graph, Tolerance
from vigil_serving.export import quantization, quantization_selection
from vigil_serving.export.graph_builder import GraphBuilder
from vigil_serving.export.step_cache import link
from vigil_serving.runtime.onnx_sessions import open_session
from vigil_serving.specs import Int8Spec

GRAPH, FAILED, CHOICE = "graph.onnx", "failed.json", "candidates.json"
BATCH = 8
"""Items whose segments make one run when candidates are timed."""
TIMED = 16
"""Runs of one pass of timing."""


class Quantising(NamedTuple):
    """What the variant is made by.

    Attributes:
        calibration: real items other than the examples.
        spec: the recipe's.
        of: what the choice depends on beside graphs: ``cases``, ``calibration``, and what decides.
    """

    calibration: Sequence[Item]
    spec: Int8Spec
    of: Mapping[str, object]


def quantised(by: quantization_selection.Fp32Baseline, how: Quantising, making: GraphBuilder) -> list[Candidate]:
    """Choose each encoder's quantised form and place it in the bundle; ``making`` has the variant then, if any encoder gained.

    Args:
        by: what candidates are measured with.
        how: what it is made by.
        making: where to.
    """
    found: list[Candidate] = []
    chosen: dict[str, str] = {}
    for modality in by.bundle.signature.modalities:
        candidates, steps = _measured(modality, by, how, making)
        found += candidates
        name = next(candidate.name for candidate in candidates if candidate.chosen)
        if name != "fp32":
            graph, fp32 = f"{modality}.int8", making.graphs[modality]
            making.graphs[graph] = Graph(f"onnx/{graph}.onnx", fp32.inputs, fp32.outputs)
            making.step_of[graph] = steps[name]
            link(making.steps.folder_of(steps[name]) / GRAPH, making.folder / making.graphs[graph].file)
            chosen[modality] = graph
    if chosen:
        making.variants["int8"] = {m: chosen.get(m, m) for m in by.bundle.signature.modalities}
    return found


def _measured(
    modality: Modality, by: quantization_selection.Fp32Baseline, how: Quantising, making: GraphBuilder
) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates of one encoder, one of them chosen, and the steps that made them."""
    segments, batches = _feeds(modality, how.calibration, by.bundle)
    steps = _candidates(modality, segments, how, making)
    files = {name: _outcome(making.steps.folder_of(step)) for name, step in steps.items()}

    def measure(to: Path) -> None:
        write_json(to / CHOICE, [asdict(candidate) for candidate in quantization_selection.choose(modality, files, batches, by)])

    of = {**how.of, "spec": how.spec.model_dump(mode="json", exclude={"required"})}
    after = (*steps.values(), *(making.step_of[graph] for graph in (*by.bundle.signature.modalities, "fusion")))
    step = making.steps.run(f"int8 {modality} measured", measure, of=of, after=after)
    return [json_fields.structure(Candidate, one, CHOICE) for one in read_json(step / CHOICE)], steps


def tolerance(spec: Int8Spec) -> Tolerance:
    """What the recipe allows."""
    return Tolerance(spec.max_difference, spec.max_flips, spec.max_ap_loss)


def _candidates(
    modality: Modality, segments: Sequence[quantization.Feed], how: Quantising, making: GraphBuilder
) -> dict[str, str]:
    """Make the candidates of one encoder; name to step."""
    encoder = making.folder / making.graphs[modality].file
    ready = f"int8 {modality} prepared"
    prepared = making.steps.run(ready, lambda to: quantization.prepare(encoder, to / GRAPH), after=(making.step_of[modality],))
    steps = {}
    for name, make in quantization.candidates(prepared / GRAPH, how.spec.reduce_range).items():

        def candidate(to: Path, make: quantization.Make = make) -> None:
            try:
                make(segments, to / GRAPH)
                open_session(to / GRAPH)
            except Exception as error:  # whatever the quantiser does not take is a line of the table and no end of the export
                (to / GRAPH).unlink(missing_ok=True)
                write_json(
                    to / FAILED, f"could not be made: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
                )

        steps[name] = f"int8 {modality}, {name}"
        given = {"reduce_range": how.spec.reduce_range, "calibration": how.of["calibration"]}
        making.steps.run(steps[name], candidate, of=given, after=(ready,))
    return steps


def _outcome(step: Path) -> Path | str:
    return step / GRAPH if (step / GRAPH).is_file() else str(read_json(step / FAILED))


def _feeds(modality: Modality, items: Sequence[Item], bundle: Bundle) -> tuple[list[quantization.Feed], list[quantization.Feed]]:
    """Calibration data: segments one by one, as many as items at most, without padding; and batches of several items."""
    decoder = Decoder(bundle.inputs, ())
    has = [item for item in items if getattr(item, modality)]
    segments: list[quantization.Feed] = []
    batches: list[quantization.Feed] = []
    for start in range(0, len(has), BATCH):
        packed = pack([decoder.decode(item) for item in has[start : start + BATCH]]).segments.get(modality)
        if packed is None:
            continue
        if len(batches) < TIMED:
            batches.append(packed.inputs)
        mask = packed.inputs.get("attention_mask")
        for row in range(len(packed.item)):
            longest = None if mask is None else max(int(np.asarray(mask)[row].sum()), 1)
            segments.append({name: array[row : row + 1, :longest] for name, array in packed.inputs.items()})
    return segments[: len(items)], batches
