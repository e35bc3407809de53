"""Streams: shares, counts and means of each window whose shifts are tested.

Windows differ by more than their items explain: authors come and go, and days have topics. A stream is therefore tested on the
values of its windows, whose variance is unknown, see :func:`vigil_monitoring.sequential.e_process.shift_evidence`. Shares are
compared on the scale of ``arcsin(sqrt(share))``, on which the variance of sampling does not depend on the share (Anscombe 1948),
counts on the scale of logarithms, and means of features as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_monitoring.drift.label_shift import class_histograms, shifted_prevalence
from vigil_monitoring.drift.results import DriftKind, listed, name_of
from vigil_monitoring.drift.settings import MIN_CASES_PER_WINDOW, MIN_ITEMS_PER_WINDOW
from vigil_monitoring.drift.summaries import ALL, DaySummary, SummaryPlan
from vigil_monitoring.drift.windows import Reference, SummaryWindow

Floats = NDArray[np.float64]

_LEVELS = (0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
"""Shares of the reference above an edge whose nearest edges are tested."""

OTHER = "any other"
"""Category of all values that the reference rarely or never has."""

NEGLIGIBLE_FEATURE_SHIFT = 0.1
"""Shift of the mean of a feature, in standard deviations of an item, that is negligible."""

_MIN_WINDOWS_FOR_VARIANCE = 3

Scale = Literal["share", "count", "mean"]


@dataclass(frozen=True, slots=True)
class Stream:
    """A share, count or mean of each window; the windows of the reference come first.

    Attributes:
        kind: what it is.
        slice_name: name of its slice.
        label: its label, if it has one.
        column: its column of categories, if it has one.
        subject: what is counted, in words.
        scale: how it is compared.
        cases_N: cases in each window: its product with ``totals_N`` for a mean.
        totals_N: items in each window that could be cases; 1 for a count.
        deviation: standard deviation of an item, for a mean.
    """

    kind: DriftKind
    slice_name: str
    label: str | None
    column: str | None
    subject: str
    scale: Scale
    cases_N: Floats
    totals_N: Floats
    deviation: float = 1.0

    def level(self, windows: slice) -> float:
        """Return the share, mean count or mean of some windows."""
        total = self.totals_N[windows].sum()
        return float(self.cases_N[windows].sum() / total) if total else 0.0


class StreamArrays(NamedTuple):
    """Arguments of ``shift_evidence`` for K streams of N windows."""

    values_NK: Floats
    weights_NK: Floats
    band_2K: Floats
    least_variance_K: Floats


def build_streams(reference: Reference, windows: Sequence[SummaryWindow], plan: SummaryPlan, notes: list[str]) -> list[Stream]:
    """Return all streams that the reference has enough items for; which ones does not depend on the traffic tested.

    Args:
        reference: the reference.
        windows: the windows that are tested.
        plan: plan of the summaries.
        notes: what is not tested is added here.
    """
    before = [window.summary for window in reference.windows]
    both = [*before, *(window.summary for window in windows)]
    streams: list[Stream] = []
    few = []
    empty = [label for label in plan.edges if not any(sum(summary.slices[ALL].counts.get(label, ())) for summary in before)]
    if empty:
        notes.append(f"labels without a probability in the reference: {listed(empty)}")
    for name in sorted({name for summary in before for name in summary.slices}):
        items = sum(summary.slices[name].items for summary in before if name in summary.slices)
        if name != ALL and items < MIN_ITEMS_PER_WINDOW * len(before):
            few.append(name)
            continue
        for label in plan.edges:
            streams += _scores(name, label, plan, reference, both)
            streams += _label_shift(name, label, reference, both)
        for column in ("action", "presence") if reference.is_traffic else ("presence",):
            streams += _categories(_of_slice(name, column), column, name, len(before), both)
    if few:
        less = f"fewer than {MIN_ITEMS_PER_WINDOW} decisions in a window of the reference"
        notes.append(f"{len(few)} slices with {less}: {listed(map(name_of, few))}")
    known = {name for summary in before for name in summary.slices}
    new = sorted({name for summary in both for name in summary.slices} - known)
    if new and plan.by and reference.is_traffic:
        notes.append(f"{len(new)} slices that the reference does not have: {listed(map(name_of, new))}")
    if reference.is_traffic:
        for column in sorted({column for summary in before for column in summary.mixes}):
            streams += _categories(lambda summary, column=column: summary.mixes.get(column, {}), column, ALL, len(before), both)  # type: ignore[misc]
        items_N = np.array([summary.items for summary in both], np.float64)
        errors_N = np.array([summary.errors for summary in both], np.float64)
        streams.append(Stream("error", ALL, None, None, "an error", "share", errors_N, items_N))
        streams.append(Stream("volume", ALL, None, None, "decisions", "count", items_N, np.ones(len(both))))
        streams += _features(len(before), both)
    return streams


def stream_arrays(streams: Sequence[Stream], references: int, smallest: float) -> StreamArrays:
    """Return the values that are compared, their weights, and the negligible shifts.

    A window of n items has variance ``1 / 4n`` from sampling, on the scale of shares, and a variance of windows that is estimated
    from the reference; with fewer than three windows, only windows of fewer items than usual have a smaller weight.

    Args:
        streams: the streams.
        references: number of windows of the reference.
        smallest: factor of the odds, or of the count, below which a shift is negligible.
    """
    columns = [_arrays(stream, references, smallest) for stream in streams]
    if not columns:
        empty = np.zeros((0, 0))
        return StreamArrays(empty, empty, np.zeros((2, 0)), np.zeros(0))
    return StreamArrays(*(np.stack(part, axis=-1) for part in zip(*columns, strict=True)))


def _arrays(stream: Stream, references: int, smallest: float) -> tuple[Floats, Floats, Floats, NDArray[np.float64]]:
    cases_N, totals_N = stream.cases_N, stream.totals_N
    before = stream.level(slice(references))
    if stream.scale == "count":
        edge = np.log(smallest)
        return np.log(cases_N + 0.5), np.ones(len(cases_N)), np.array([-edge, edge]), np.array(1 / max(before, 1.0))
    some_N = totals_N > 0
    items_N = np.where(some_N, totals_N, 1.0)
    if stream.scale == "mean":
        value_N, unit = cases_N / items_N, stream.deviation**2
        band_2 = NEGLIGIBLE_FEATURE_SHIFT * stream.deviation * np.array([-1.0, 1.0])
    else:
        value_N, unit = arcsine(cases_N, items_N), 0.25
        at = np.array([before / (before + smallest * (1 - before)), before * smallest / (1 - before + before * smallest)])
        band_2 = np.arcsin(np.sqrt(at)) - np.arcsin(np.sqrt(before))
    usual = float(np.median(items_N[:references][some_N[:references]])) if some_N[:references].any() else 1.0
    sampling_N, usual_variance = unit / items_N, unit / usual
    if some_N[:references].sum() >= _MIN_WINDOWS_FOR_VARIANCE:
        known = slice(0, references)
        spread = max(float(value_N[known][some_N[known]].var(ddof=1)) - float(sampling_N[known][some_N[known]].mean()), 0.0)
        weights_N = (usual_variance + spread) / (sampling_N + spread)
    else:
        weights_N = np.minimum(items_N / usual, 1.0)
    return value_N, np.where(some_N, weights_N, 0.0), band_2, np.array(usual_variance)


def arcsine(cases_N: Floats, totals_N: Floats) -> Floats:
    """Return shares on the scale on which sampling varies by ``1 / 4n`` (Anscombe 1948)."""
    return np.asarray(np.arcsin(np.sqrt(np.clip((cases_N + 0.375) / (totals_N + 0.75), 0, 1))))


def _of_slice(name: str, column: str) -> Callable[[DaySummary], dict[str, int]]:
    def categories(summary: DaySummary) -> dict[str, int]:
        return summary.slices[name].categories.get(column, {}) if name in summary.slices else {}

    return categories


def histograms(name: str, label: str, bins: int, summaries: Sequence[DaySummary]) -> tuple[Floats, Floats]:
    """Return the counts and sums of each bin of a slice's probabilities, ``[N, B]`` each."""
    counts_NB, sums_NB = np.zeros((len(summaries), bins)), np.zeros((len(summaries), bins))
    for n, summary in enumerate(summaries):
        if name in summary.slices and label in summary.slices[name].counts:
            counts_NB[n], sums_NB[n] = summary.slices[name].counts[label], summary.slices[name].sums[label]
    return counts_NB, sums_NB


def _scores(name: str, label: str, plan: SummaryPlan, reference: Reference, both: Sequence[DaySummary]) -> Iterator[Stream]:
    edges = plan.edges[label]
    counts_NB, _ = histograms(name, label, len(edges) + 1, both)
    above_NB = counts_NB[:, ::-1].cumsum(axis=1)[:, ::-1]
    totals_N, references = counts_NB.sum(axis=1), len(reference.windows)
    above_B, total = above_NB[:references].sum(axis=0), totals_N[:references].sum()
    known = edges if reference.edges is None else reference.edges.get(label, ())
    enough = MIN_CASES_PER_WINDOW * references
    places = [i + 1 for i, edge in enumerate(edges) if edge in known and enough <= above_B[i + 1] <= total - enough]
    if not places:
        return
    logs = np.log(above_B[places] / total)
    levels = [level for level in _LEVELS if total * level >= enough / 2]
    chosen = {places[int(np.abs(logs - np.log(level)).argmin())] for level in levels}
    for i in sorted(chosen):
        subject = f"a probability of {label} of at least {edges[i - 1]:.4g}"
        yield Stream("score", name, label, None, subject, "share", above_NB[:, i], totals_N)


def _label_shift(name: str, label: str, reference: Reference, both: Sequence[DaySummary]) -> Iterator[Stream]:
    counts = next((summary.slices[name].counts.get(label) for summary in both if name in summary.slices), None)
    if not reference.is_traffic or counts is None:
        return
    counts_NB, sums_NB = histograms(name, label, len(counts), both)
    references = len(reference.windows)
    classes = class_histograms(counts_NB[:references].sum(axis=0), sums_NB[:references].sum(axis=0))
    totals_N = counts_NB.sum(axis=1)
    if classes is None or classes.prevalence * totals_N[:references].sum() < MIN_CASES_PER_WINDOW * references:
        return
    prevalence_N = np.nan_to_num(shifted_prevalence(classes, counts_NB))
    subject = f"positives of {label}, if only their prevalence changed"
    yield Stream("label shift", name, label, None, subject, "share", prevalence_N * totals_N, totals_N)


def _categories(
    of: Callable[[DaySummary], dict[str, int]], column: str, name: str, references: int, both: Sequence[DaySummary]
) -> Iterator[Stream]:
    """Yield the share of each category that the reference has often enough, and that of all others together."""
    counted = [of(summary) for summary in both]
    totals_N = np.array([sum(counts.values()) for counts in counted], np.float64)
    known: dict[str, int] = {}
    for counts in counted[:references]:
        for value, count in counts.items():
            known[value] = known.get(value, 0) + count
    if not known or set(known) == {"unknown"}:
        return
    kind: DriftKind = "action" if column == "action" else "presence" if column == "presence" else "mix"
    often = sorted(value for value, count in known.items() if count >= MIN_CASES_PER_WINDOW * references)
    shares = {value: np.array([counts.get(value, 0) for counts in counted], np.float64) for value in often}
    if len(often) == 2:
        rest_N = totals_N - sum(shares.values())
        if not rest_N[:references].any():
            shares.pop(often[0])
    others_N = np.array([sum(n for value, n in counts.items() if value not in often) for counts in counted], np.float64)
    for value, cases_N in shares.items():
        yield Stream(kind, name, None, column, f"{column} {value}", "share", cases_N, totals_N)
    yield Stream(kind, name, None, column, f"{OTHER} {column}", "share", others_N, totals_N)


def _features(references: int, both: Sequence[DaySummary]) -> Iterator[Stream]:
    known = [summary.features for summary in both[:references] if summary.features is not None]
    if not known:
        return
    items = sum(each.items for each in known)
    mean_F = np.sum([each.sums for each in known], axis=0) / items
    deviation_F = np.sqrt(np.maximum(np.sum([each.squares for each in known], axis=0) / items - mean_F**2, 1e-12))
    width = len(mean_F)
    sums_NF = np.array([[0.0] * width if summary.features is None else summary.features.sums for summary in both])
    totals_N = np.array([0 if summary.features is None else summary.features.items for summary in both], np.float64)
    for i in range(width):
        subject = f"feature {i} of the embeddings"
        yield Stream("input", ALL, None, None, subject, "mean", sums_NF[:, i], totals_N, float(deviation_F[i]))
