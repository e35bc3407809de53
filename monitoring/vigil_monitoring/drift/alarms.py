"""Alarms: what changed, by how much, since when, and 20 decisions that show it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_monitoring.drift.calibration import CalibrationStream, ReviewedItems, positives_per_predicted, surprising
from vigil_monitoring.drift.examples import ExampleSearch, find_examples
from vigil_monitoring.drift.label_shift import class_histograms, fit_shift
from vigil_monitoring.drift.results import DriftAlarm, DriftKind, name_of, percent
from vigil_monitoring.drift.settings import EXAMPLES
from vigil_monitoring.drift.streams import Stream, histograms
from vigil_monitoring.drift.windows import Comparison, SummaryWindow
from vigil_monitoring.sequential.e_process import ChangeEvidence
from vigil_monitoring.traffic import Traffic

Floats = NDArray[np.float64]


class Tests(NamedTuple):
    """Tests of K streams in T windows.

    Attributes:
        evidence: evidence for a change.
        first_K: window of the first alarm; T without one.
        p_TK: p-values up to each window, corrected for all streams.
        kinds: kind of each stream.
    """

    evidence: ChangeEvidence
    first_K: NDArray[np.int64]
    p_TK: Floats
    kinds: Sequence[DriftKind]


def stream_alarms(
    traffic: Traffic, compared: Comparison, streams: Sequence[Stream], tests: Tests, window: str
) -> list[DriftAlarm]:
    """Return one alarm for each kind, slice and label or column: that of the stream with the most evidence."""
    windows, references = compared.windows, len(compared.reference.windows)
    evidence, first_K = tests.evidence, tests.first_K
    best: dict[tuple[str, str, str | None, str | None], int] = {}
    for k, stream in enumerate(streams):
        key = (stream.kind, stream.slice_name, stream.label, stream.column)
        if first_K[k] < len(windows) and (key not in best or evidence.log_e[:, k].max() > evidence.log_e[:, best[key]].max()):
            best[key] = k
    chosen = sorted(best.values())
    searches = []
    for k in chosen:
        since, day = int(evidence.start[first_K[k], k]), int(first_K[k])
        searches.append(_search(streams[k], compared, slice(references + since, references + day + 1), windows[day]))
    alarms = []
    for k, ids in zip(chosen, find_examples(traffic, searches), strict=True):
        stream, at = streams[k], int(first_K[k])
        since = int(evidence.start[at, k])
        before, now = stream.level(slice(references)), stream.level(slice(references + since, None))
        if stream.scale == "mean":
            before, now = 0.0, (now - before) / stream.deviation
        start, raised = windows[since].start.isoformat(), windows[at].end.isoformat()
        what = _sentence(stream, before, now, window)
        if stream.kind == "label shift":
            what += _unexplained(stream, compared, slice(references + since, None))
        text = f"{name_of(stream.slice_name)}: {what}; since {start}, alarm on {raised}"
        p_value = float(tests.p_TK[-1, k])
        alarms.append(
            DriftAlarm(
                stream.kind,
                name_of(stream.slice_name),
                stream.label,
                stream.subject,
                before,
                now,
                start,
                raised,
                p_value,
                ids,
                text,
            )
        )
    return alarms


def _sentence(stream: Stream, before: float, now: float, window: str) -> str:
    if stream.scale == "count":
        return f"{now:,.0f} {stream.subject} a {window}, {before:,.0f} before"
    if stream.scale == "mean":
        return f"the mean of {stream.subject} is {now:+.2f} standard deviations from the reference"
    if stream.kind == "label shift":
        return f"{percent(now)} of the decisions are {stream.subject}, {percent(before)} before"
    return f"{percent(now)} of the decisions have {stream.subject}, {percent(before)} before"


def _unexplained(stream: Stream, compared: Comparison, changed: slice) -> str:
    """Return how much of the change of the probabilities another prevalence leaves unexplained."""
    counts_NB, sums_NB, references = *_histograms(stream, compared), len(compared.reference.windows)
    classes = class_histograms(counts_NB[:references].sum(axis=0), sums_NB[:references].sum(axis=0))
    now_B = counts_NB[changed].sum(axis=0)
    if classes is None or not now_B.any():
        return ""
    fit = fit_shift(classes, now_B)
    return (
        f" (leaves {percent(min(fit.unexplained / max(fit.distance, 1e-12), 1))} of the change of the probabilities unexplained)"
    )


def _histograms(stream: Stream, compared: Comparison) -> tuple[Floats, Floats]:
    summaries = [each.summary for each in (*compared.reference.windows, *compared.windows)]
    label = stream.label or ""
    return histograms(stream.slice_name, label, len(compared.plan.edges[label]) + 1, summaries)


def _search(stream: Stream, compared: Comparison, changed: slice, window: SummaryWindow) -> ExampleSearch:
    """Return what to look for: decisions where there are more than the reference has, most of them first."""
    references = len(compared.reference.windows)
    rises = stream.level(changed) >= stream.level(slice(references))
    search = ExampleSearch(window.end, stream.slice_name)
    if stream.label is not None:
        edges = compared.plan.edges[stream.label]
        counts_NB, _ = _histograms(stream, compared)
        before_B, now_B = counts_NB[:references].sum(axis=0), counts_NB[changed].sum(axis=0)
        search.label, search.edges, search.by_bin = stream.label, edges, _excess(before_B, now_B)
    elif stream.column is not None:
        before, now = _category_counts(stream, compared, references, changed)
        names = sorted({*before, *now})
        excess = _excess(np.array([before.get(name, 0) for name in names]), np.array([now.get(name, 0) for name in names]))
        search.column, search.by_category = stream.column, dict(zip(names, excess.tolist(), strict=True))
    elif stream.kind == "input":
        search.feature = (int(stream.subject.split()[1]) + 1) * (1 if rises else -1)
    elif stream.kind == "error":
        search.errors = rises
    return search


def _category_counts(
    stream: Stream, compared: Comparison, references: int, changed: slice
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    summaries = [each.summary for each in (*compared.reference.windows, *compared.windows)]

    def of(some: Sequence[int]) -> Counter[str]:
        total: Counter[str] = Counter()
        for n in some:
            summary = summaries[n]
            if stream.kind == "mix":
                total.update(summary.mixes.get(stream.column or "", {}))
            elif stream.slice_name in summary.slices:
                total.update(summary.slices[stream.slice_name].categories.get(stream.column or "", {}))
        return total

    return of(range(references)), of(range(*changed.indices(len(summaries))))


def _excess(before_B: Floats, now_B: Floats) -> Floats:
    """Return the log ratio of each bin's share now and before where it rose; minus infinity elsewhere."""
    expected_B = before_B / max(before_B.sum(), 1) * now_B.sum()
    return np.where(now_B > expected_B, np.log((now_B + 0.5) / (expected_B + 0.5)), -np.inf)


def calibration_alarms(
    reviewed: ReviewedItems, calibrated: Sequence[CalibrationStream], windows: Sequence[SummaryWindow], tests: Tests
) -> list[DriftAlarm]:
    """Return one alarm for each label and slice whose reviewed items contradict the probabilities; these are the last streams."""
    evidence, alarms, offset = tests.evidence, [], len(tests.first_K) - 2 * len(calibrated)
    for i, stream in enumerate(calibrated):
        k = offset + 2 * i + int(evidence.log_e[:, offset + 2 * i + 1].max() > evidence.log_e[:, offset + 2 * i].max())
        if (at := int(tests.first_K[k])) >= len(windows):
            continue
        since = int(evidence.start[at, k])
        positives, predicted = positives_per_predicted(reviewed, stream, since)
        ratio = positives / predicted if predicted else 0.0
        start, raised = windows[since].start.isoformat(), windows[at].end.isoformat()
        count = int((stream.window >= since).sum())
        sentence = (
            f"{name_of(stream.slice_name)}: {ratio:.2f} positives of {stream.label} for each that the probabilities state, in "
            f"{count:,} reviewed items; since {start}, alarm on {raised}"
        )
        ids = surprising(reviewed, stream, since, EXAMPLES, more=(k - offset) % 2 == 0)
        subject = f"positives of {stream.label} per predicted one"
        alarms.append(
            DriftAlarm(
                "calibration",
                name_of(stream.slice_name),
                stream.label,
                subject,
                1.0,
                ratio,
                start,
                raised,
                float(tests.p_TK[-1, k]),
                ids,
                sentence,
            )
        )
    return alarms
