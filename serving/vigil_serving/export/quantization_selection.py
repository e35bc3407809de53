"""Select the quantization of each encoder: measured on real items, one encoder replaced at a time, and timed together."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import Modality
from vigil_serving.bundle.load import ExportedModel, weights_file
from vigil_serving.bundle.metadata import Candidate, Parity, Tolerance
from vigil_serving.export.quantization import Feed
from vigil_serving.parity.batch_invariance import measure_invariance, rearrange
from vigil_serving.parity.cases import Case
from vigil_serving.parity.compare import Backend, compare_outputs, failure
from vigil_serving.runtime.onnx_sessions import Sessions, fuse, open_session, open_sessions, run

TIMING_ROUNDS = 7
"""Passes over the timing data; every pass times all candidates in turn, so that other load affects all of them."""
MAX_TIME_SHARE = 0.95
"""Largest share of float32's time that a selected candidate may take."""


class Fp32Baseline(NamedTuple):
    """The float32 graphs and their outputs on real items, against which candidates are measured.

    Attributes:
        model: the exported float32 model; its calibration, thresholds and policy decide.
        sessions: its loaded graphs.
        cases: real items.
        tokens: tokens of every modality present, for each case.
        expected: raw probabilities ``[N, L]`` of the float32 graphs, for each case.
        tolerance: allowed deviation of a candidate.
        min_known: known positives, and negatives, that a label needs for an average precision.
    """

    model: ExportedModel
    sessions: Sessions
    cases: Sequence[Case]
    tokens: Sequence[Mapping[Modality, Sequence[NDArray[Any]]]]
    expected: Sequence[NDArray[np.float32]]
    tolerance: Tolerance
    min_known: int


def fp32_baseline(model: ExportedModel, cases: Sequence[Case], tolerance: Tolerance, min_known: int) -> Fp32Baseline:
    """Run the float32 graphs on real cases; see :class:`Fp32Baseline` for the arguments."""
    sessions = open_sessions(model)
    tokens = [{m: sessions.encode(m, s) for m, s in case.packed.segments.items() if m in sessions.encoders} for case in cases]
    expected = [_fuse_case(sessions, case, of_case) for case, of_case in zip(cases, tokens, strict=True)]
    return Fp32Baseline(model, sessions, cases, tokens, expected, tolerance, min_known)


def select(modality: Modality, files: Mapping[str, Path | str], feeds: Sequence[Feed], baseline: Fp32Baseline) -> list[Candidate]:
    """Measure the candidates for one encoder and select the fastest within the tolerance.

    Args:
        modality: modality of the encoder.
        files: candidate to its graph, or to the reason why it could not be made.
        feeds: batches to time it on.
        baseline: what it is measured against.

    Returns:
        The float32 encoder, then each candidate; exactly one of them is chosen.
    """
    fp32 = baseline.model.encoders("fp32")[modality]
    made = {name: file for name, file in files.items() if isinstance(file, Path)}
    times = _times({"fp32": fp32, **made}, feeds)
    parity = {name: _measure(modality, name, file, baseline) for name, file in made.items()}
    failed = {name: _reason(modality, file, parity.get(name)) for name, file in files.items()}
    limit = MAX_TIME_SHARE * (times["fp32"] or 0.0)
    within = {name: t for name in made if failed[name] is None and (t := times[name]) is not None and t <= limit}
    chosen = min(within, key=lambda name: within[name]) if within else "fp32"
    return [Candidate(modality, "fp32", chosen == "fp32", times["fp32"], _bytes(fp32), None, None)] + [
        Candidate(
            modality=modality,
            name=name,
            chosen=name == chosen,
            milliseconds=times.get(name),
            bytes=_bytes(file) if isinstance(file, Path) else 0,
            parity=parity.get(name),
            failed=failed[name],
        )
        for name, file in files.items()
    ]


def _bytes(graph: Path) -> int:
    return sum(file.stat().st_size for file in (graph, weights_file(graph)) if file.is_file())


def _reason(modality: Modality, file: Path | str, parity: Parity | None) -> str | None:
    """Return why a candidate cannot be chosen; ``None`` if it can."""
    if not isinstance(file, Path):
        return file
    return f"no real example has any {modality} to measure it on" if parity is None else failure(parity)


def _measure(modality: Modality, name: str, file: Path, baseline: Fp32Baseline) -> Parity | None:
    """Compare a candidate with the float32 encoder on the real items that have the modality; ``None`` if none has."""
    sessions = replace(baseline.sessions, encoders={**baseline.sessions.encoders, modality: open_session(file)})
    cases, outputs, expected = [], [], []
    for case, tokens, expected_NL in zip(baseline.cases, baseline.tokens, baseline.expected, strict=True):
        if modality in tokens or sessions.asks_with(modality):
            replaced = {modality: sessions.encode(modality, case.packed.segments[modality])} if modality in tokens else {}
            cases.append(case)
            outputs.append(_fuse_case(sessions, case, {**tokens, **replaced}))
            expected.append(expected_NL)
    if not cases:
        return None
    backend = Backend(name, "int8", lambda case: run(sessions, case.packed).probabilities_NL)
    tolerance, min_known = baseline.tolerance, baseline.min_known
    parity = compare_outputs(backend, outputs, cases, expected, baseline.model, tolerance=tolerance, min_known=min_known)
    return replace(parity, invariance=measure_invariance(backend, outputs, rearrange(cases), baseline.model))


def _fuse_case(sessions: Sessions, case: Case, tokens: Mapping[Modality, Sequence[NDArray[Any]]]) -> NDArray[np.float32]:
    return fuse(sessions, len(case.items), tokens, case.packed.segments).probabilities_NL


def _times(files: Mapping[str, Path], feeds: Sequence[Feed]) -> dict[str, float | None]:
    """Return the median milliseconds of a run of each graph; ``None`` without data."""
    if not feeds:
        return dict.fromkeys(files)
    sessions = {name: open_session(file) for name, file in files.items()}
    for session in sessions.values():
        session.run(None, dict(feeds[0]))
    taken: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(TIMING_ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            for feed in feeds:
                session.run(None, dict(feed))
            taken[name].append(1000 * (time.perf_counter() - start) / len(feeds))
    return {name: statistics.median(milliseconds) for name, milliseconds in taken.items()}
