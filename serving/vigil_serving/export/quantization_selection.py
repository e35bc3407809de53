"""Which way of quantising each encoder serves: measured on real items, one encoder exchanged at a time, and timed in one go."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import Modality
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.metadata import Candidate, Tolerance
from vigil_serving.export.quantization import Feed
from vigil_serving.parity import compare
from vigil_serving.parity.cases import Case
from vigil_serving.runtime.onnx_sessions import RUN_LIMITS, Sessions, encode, fuse, open_session, open_sessions

ROUNDS = 7
"""Passes over the timing data; every pass times all candidates in turn, so that a busy moment meets all of them."""
WORTH = 0.95
"""A candidate that takes more than this share of float32's time is not worth its loss."""


class Fp32Baseline(NamedTuple):
    """What candidates are measured with.

    Attributes:
        bundle: the float32 bundle in the making; by its thresholds and policy is decided.
        sessions: its graphs.
        cases: real items.
        tokens: of each case, the float32 tokens of every modality that it has.
        expected: of each case, the raw probabilities ``[N, L]`` of the float32 graphs.
        tolerance: what a candidate may cost.
        enough: known positives and negatives that a label needs for an average precision.
    """

    bundle: Bundle
    sessions: Sessions
    cases: Sequence[Case]
    tokens: Sequence[Mapping[Modality, NDArray[np.float32]]]
    expected: Sequence[NDArray[np.float32]]
    tolerance: Tolerance
    enough: int


def fp32_baseline(bundle: Bundle, cases: Sequence[Case], tolerance: Tolerance, enough: int) -> Fp32Baseline:
    """Run the float32 graphs on real cases.

    Args:
        bundle: the float32 bundle in the making.
        cases: real items.
        tolerance: what a candidate may cost.
        enough: see :class:`Fp32Baseline`.
    """
    sessions = open_sessions(bundle)
    tokens = [
        {m: encode(sessions.encoders[m], s, RUN_LIMITS[m]) for m, s in case.packed.segments.items() if m in sessions.encoders}
        for case in cases
    ]
    expected = [_fused(sessions, case, found) for case, found in zip(cases, tokens, strict=True)]
    return Fp32Baseline(bundle, sessions, cases, tokens, expected, tolerance, enough)


def choose(modality: Modality, files: Mapping[str, Path | str], feeds: Sequence[Feed], by: Fp32Baseline) -> list[Candidate]:
    """Measure the candidates for one encoder and choose the fastest that is within the tolerance.

    Args:
        modality: whose encoder.
        files: candidate to its graph, or to why it could not be made.
        feeds: batches to time it on.
        by: what it is measured with.

    Returns:
        One for each candidate and one for ``fp32``; exactly one of them is chosen.
    """
    fp32 = by.bundle.encoders("fp32")[modality]
    made = {name: file for name, file in files.items() if isinstance(file, Path)}
    times = _times({"fp32": fp32, **made}, feeds)
    real = sum(len(case.items) if modality in case.packed.segments else 0 for case in by.cases)
    found = [_unmeasured(modality, "fp32", times["fp32"], fp32)]
    for name, file in files.items():
        if not isinstance(file, Path):
            found.append(replace(_unmeasured(modality, name, None, fp32), bytes=0, failed=file))
        elif not real:
            reason = f"no real example has any {modality} to measure it on"
            found.append(replace(_unmeasured(modality, name, times[name], file), failed=reason))
        else:
            found.append(_measured(modality, name, file, times[name], by))
    able = [c for c in found[1:] if c.failed is None and c.milliseconds is not None]
    limit = WORTH * (times["fp32"] or 0.0)
    worth = [c for c in able if (c.milliseconds or 0.0) <= limit]
    best = min(worth, key=lambda c: c.milliseconds or 0.0) if worth else found[0]
    return [replace(c, chosen=c is best) for c in found]


def _unmeasured(modality: str, name: str, milliseconds: float | None, file: Path) -> Candidate:
    return Candidate(modality, name, False, milliseconds, 0.0, 0, 0, {}, file.stat().st_size, None)


def _measured(modality: Modality, name: str, file: Path, milliseconds: float | None, by: Fp32Baseline) -> Candidate:
    """A candidate, with what the real items say of it."""
    session = open_session(file)
    cases, found, expected = [], [], []
    for case, tokens, due in zip(by.cases, by.tokens, by.expected, strict=True):
        if modality in tokens:
            exchanged = encode(session, case.packed.segments[modality], RUN_LIMITS[modality])
            cases.append(case)
            found.append(_fused(by.sessions, case, {**tokens, modality: exchanged}))
            expected.append(due)
    form = compare.NamedForm(name, "int8", lambda _: np.empty(0))
    seen = compare.compare(form, found, cases, expected, by.bundle, tolerance=by.tolerance, enough=by.enough)
    return Candidate(
        modality,
        name,
        False,
        milliseconds,
        seen.max_difference,
        seen.real_flips,
        seen.decisions,
        seen.ap_change,
        file.stat().st_size,
        compare.failure(seen),
    )


def _fused(sessions: Sessions, case: Case, tokens: Mapping[Modality, NDArray[np.float32]]) -> NDArray[np.float32]:
    return fuse(sessions, len(case.items), tokens, {m: case.packed.segments[m].item for m in tokens}).probabilities_NL


def _times(files: Mapping[str, Path], feeds: Sequence[Feed]) -> dict[str, float | None]:
    """Median milliseconds of a run of each graph; ``None`` without data."""
    if not feeds:
        return dict.fromkeys(files)
    sessions = {name: open_session(file) for name, file in files.items()}
    for session in sessions.values():
        session.run(None, dict(feeds[0]))
    taken: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            for feed in feeds:
                session.run(None, dict(feed))
            taken[name].append(1000 * (time.perf_counter() - start) / len(feeds))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
