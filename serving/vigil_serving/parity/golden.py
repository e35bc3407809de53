"""Golden cases: synthetic items in the bundle, the arrays that they decode to, and the outputs recorded at the export.

They let any deployment (another machine, Triton, C++) check all steps: bytes to arrays, arrays to probabilities, and
probabilities to decisions.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode import Decoder, Undecodable
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.items import MODALITIES, Item, Modality
from vigil_data.loading.packing import NO_TIME, Packed, PackedSegments, pack, spans_of
from vigil_data.progress import ProgressCallback
from vigil_data.settings import Settings
from vigil_serving.bundle.load import Bundle, ExportedModel
from vigil_serving.bundle.manifest import GOLDEN_DECISIONS, GOLDEN_INPUTS, GOLDEN_ITEMS, GOLDEN_OUTPUTS, golden_outputs
from vigil_serving.bundle.metadata import Parity, Tolerance
from vigil_serving.parity.batch_invariance import measure_invariance, rearrange
from vigil_serving.parity.cases import Case
from vigil_serving.parity.compare import (
    INT8_KERNEL_DIFFERENCE,
    TOLERANCES,
    Backend,
    ParityError,
    compare_outputs,
    decide_case,
    failure,
    largest_difference,
    run_backend,
)
from vigil_serving.protocol.errors import RequestError
from vigil_serving.protocol.item_json import item_from_json, item_to_json

# Other versions of the decoding libraries may round differently: one grey level of 255, and sound at -80 dB.
PIXELS_TOLERANCE = 1
WAVEFORM_TOLERANCE = 1e-4
CALIBRATED_TOLERANCE = 1e-6
"""Difference of a calibrated probability between versions of numpy: the last bits of log and exp."""


@dataclass(frozen=True, slots=True)
class GoldenCases:
    """Golden cases of a bundle.

    Attributes:
        cases: the batches.
        outputs: variant to the raw probabilities ``[N, L]`` of each batch at the export; ``fp32`` has those of the trained model.
        decisions: decisions on each batch that follow from the trained model's probabilities, as JSON.
    """

    cases: Sequence[Case]
    outputs: Mapping[str, Sequence[NDArray[np.float32]]]
    decisions: Sequence[Sequence[Mapping[str, Any]]]

    def expected(self, variant: str) -> Sequence[NDArray[np.float32]]:
        """Return the recorded outputs of a variant, or of the trained model where the variant has none of its own."""
        return self.outputs.get(variant, self.outputs["fp32"])


def write_golden(
    folder: Path, model: ExportedModel, cases: Sequence[Case], outputs: Mapping[str, Sequence[NDArray[np.floating]]]
) -> None:
    """Write the golden cases with their outputs and decisions.

    Args:
        folder: the bundle's folder.
        model: its calibration, thresholds and policy decide.
        cases: all compared batches; only the golden ones are written.
        outputs: variant to raw probabilities ``[N, L]`` of each of ``cases``; ``fp32`` has those of the trained model.
    """
    (folder / GOLDEN_ITEMS).parent.mkdir(parents=True, exist_ok=True)
    golden = [case for case in cases if case.golden]
    _write_lines(folder / GOLDEN_ITEMS, ({"case": case.name, "items": [item_to_json(i) for i in case.items]} for case in golden))
    pairs = [(case, p_NL.astype(np.float32)) for case, p_NL in zip(cases, outputs["fp32"], strict=True) if case.golden]
    decided = ({"case": case.name, "decisions": _decisions(model, case, raw_NL)} for case, raw_NL in pairs)
    _write_lines(folder / GOLDEN_DECISIONS, decided)
    inputs = {
        f"{case.name}/{modality}/{name}": array
        for case in golden
        for modality, segments in case.packed.segments.items()
        for name, array in {**segments.inputs, **segments.placement(modality, model.placement)}.items()
    }
    np.savez_compressed(folder / GOLDEN_INPUTS, allow_pickle=False, **inputs)
    for variant, outputs_of in outputs.items():
        kept = {case.name: p_NL.astype(np.float32) for case, p_NL in zip(cases, outputs_of, strict=True) if case.golden}
        np.savez_compressed(folder / _outputs_file(variant), allow_pickle=False, **kept)


def read_golden(folder: StrPath) -> GoldenCases:
    """Read the golden cases of a bundle.

    Raises:
        UserError: if the files are missing or damaged.
    """
    folder = Path(folder)
    try:
        with np.load(folder / GOLDEN_INPUTS) as inputs:
            arrays = dict(inputs)
        lines = _read_lines(folder / GOLDEN_ITEMS)
        cases = [_case(line["case"], tuple(item_from_json(i, line["case"]) for i in line["items"]), arrays) for line in lines]
        variants = [path.name.split(".")[1] for path in folder.glob(golden_outputs("*"))]
        outputs = {variant: _read_outputs(folder / _outputs_file(variant), cases) for variant in ("fp32", *variants)}
        recorded = {line["case"]: line["decisions"] for line in _read_lines(folder / GOLDEN_DECISIONS)}
        decisions = [recorded[case.name] for case in cases]
    except (OSError, ValueError, KeyError, TypeError, BadZipFile, RequestError) as error:
        raise UserError(
            f"{folder}: the golden cases cannot be read ({type(error).__name__}: {error}); export the bundle again"
        ) from None
    return GoldenCases(cases, outputs, decisions)


def check_golden_outputs(
    bundle: Bundle,
    backends: Iterable[Backend],
    golden: GoldenCases | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[Parity, ...]:
    """Check that backends reproduce the golden outputs that were recorded for their variant.

    Both ``vigil verify`` (every backend) and the server (the runtime, at load and reload) call this.

    Args:
        bundle: the bundle.
        backends: what is run.
        golden: the bundle's golden cases (default: read them).
        progress: called with (backend, batches done, all batches).

    Returns:
        The agreement of each backend.

    Raises:
        UserError: one line for each backend that does not reproduce the outputs, with the golden case that differs most.
    """
    golden = golden or read_golden(bundle.path)
    rearrangement = rearrange(golden.cases)
    parities, problems = [], []
    for backend in backends:
        expected = golden.expected(backend.variant)
        try:
            outputs = run_backend(backend, golden.cases, expected, progress)
        except ParityError as error:
            problems.append(f"{bundle.path}: {error}")
            continue
        tolerance = _golden_tolerance(backend.variant, bundle)
        parity = compare_outputs(backend, outputs, golden.cases, expected, bundle, tolerance=tolerance)
        parity = replace(parity, invariance=measure_invariance(backend, outputs, rearrangement, bundle, progress))
        if reason := failure(parity):
            differences = [largest_difference(*pair) for pair in zip(outputs, expected, strict=True)]
            worst = golden.cases[int(np.argmax(differences))].name
            problems.append(f"{bundle.path}: {backend.name}: golden case {worst}: outputs differ; {reason}")
        parities.append(parity)
    if problems:
        raise UserError(*problems)
    return tuple(parities)


def _golden_tolerance(variant: str, bundle: Bundle) -> Tolerance:
    """Return the allowed deviation; for int8 as much as quantization changed, since 8-bit kernels differ between CPUs."""
    if variant in TOLERANCES:
        return TOLERANCES[variant]
    measured = [p.max_difference for p in bundle.metadata.parity if p.variant == variant]
    return Tolerance(max([INT8_KERNEL_DIFFERENCE, *measured]), flips=1.0)


def decision_differences(golden: GoldenCases, bundle: Bundle) -> list[str]:
    """Decide the golden cases from their recorded probabilities, and compare with the recorded decisions.

    Returns:
        One line for each batch on which this machine calibrates or decides otherwise than the exporting one.
    """
    found = []
    for case, raw_NL, recorded in zip(golden.cases, golden.outputs["fp32"], golden.decisions, strict=True):
        here = _decisions(bundle, case, raw_NL)
        if not _agree(here, recorded):
            found.append(f"{case.name}: the recorded probabilities give other decisions than at the export")
    return found


def _decisions(model: ExportedModel, case: Case, raw_NL: NDArray[np.floating]) -> list[dict[str, Any]]:
    decided = decide_case(model, case, raw_NL)
    actions: Sequence[tuple[str | None, bool]] = decided.actions or [(None, False)] * len(case.items)
    return [
        {
            "id": item.id,
            "probabilities": dict(zip(model.labels, map(float, probabilities_L), strict=True)),
            "labels": [label for label, is_decided in zip(model.labels, decided_L, strict=True) if is_decided],
            "action": action,
            "review": review,
        }
        for item, probabilities_L, decided_L, (action, review) in zip(
            case.items, decided.probabilities_NL, decided.labels_NL, actions, strict=True
        )
    ]


def _agree(here: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, Any]]) -> bool:
    if [{**decision, "probabilities": None} for decision in here] != [
        {**decision, "probabilities": None} for decision in recorded
    ]:
        return False
    pairs = [(ours["probabilities"], theirs["probabilities"]) for ours, theirs in zip(here, recorded, strict=True)]
    return all(
        ours.keys() == theirs.keys() and all(abs(ours[label] - theirs[label]) <= CALIBRATED_TOLERANCE for label in ours)
        for ours, theirs in pairs
    )


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _outputs_file(variant: str) -> str:
    return GOLDEN_OUTPUTS if variant == "fp32" else golden_outputs(variant)


def _read_outputs(path: Path, cases: Sequence[Case]) -> list[NDArray[np.float32]]:
    with np.load(path) as outputs:
        return [outputs[case.name] for case in cases]


def decoding_differences(cases: Sequence[Case], inputs: Settings) -> list[str]:
    """Decode the golden items on this machine and compare the arrays with those of the export.

    Args:
        cases: golden cases.
        inputs: the bundle's input settings.

    Returns:
        One line for each array that differs by more than rounding.
    """
    decoder = Decoder(inputs, ())
    return [line for case in cases for line in _differences(case, decoder)]


def _differences(case: Case, decoder: Decoder) -> Iterator[str]:
    try:
        here = pack([decoder.decode(item) for item in case.items])
    except Undecodable as error:
        yield f"{case.name}: an item cannot be decoded here: {error}"
        return
    for modality in MODALITIES:
        at_export, now = case.packed.segments.get(modality), here.segments.get(modality)
        if at_export is None and now is None:
            continue
        if at_export is None or now is None or not np.array_equal(at_export.item, now.item):
            yield f"{case.name}: {modality} decodes to other segments than at the export"
            continue
        timed = any(span.time for span in at_export.spans)  # recorded only if the model uses times
        if not np.array_equal(at_export.role, now.role) or (timed and not np.array_equal(at_export.time, now.time)):
            yield f"{case.name}: {modality} has other roles or times than at the export"
        for name, array in at_export.inputs.items():
            if not _same(array, now.inputs[name]):
                yield f"{case.name}: {modality} decodes to other {name} than at the export"


def _same(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype == np.uint8:
        return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max(initial=0)) <= PIXELS_TOLERANCE
    if a.dtype == np.float32:
        return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)) <= WAVEFORM_TOLERANCE
    return np.array_equal(a, b)


def _case(name: str, items: tuple[Item, ...], arrays: dict[str, NDArray[np.generic]]) -> Case:
    segments: dict[Modality, PackedSegments] = {}
    for modality in MODALITIES:
        prefix = f"{name}/{modality}/"
        found = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        if found:
            item_S = found.pop("item").astype(np.int64)
            role_S = found.pop("role", np.zeros(len(item_S), np.int64))
            time_S2 = found.pop("time", np.full((len(item_S), 2), NO_TIME, np.float32))
            segments[modality] = PackedSegments(item_S, found, spans_of(role_S, time_S2))
    return Case(
        name, items, Packed(tuple(item.id for item in items), segments, np.empty((len(items), 0), np.float32)), golden=True
    )
