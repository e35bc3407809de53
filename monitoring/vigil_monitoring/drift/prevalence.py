"""Prevalence of each label in the last windows, estimated from probabilities alone."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.drift.label_shift import black_box_prevalence, class_histograms, fit_shift
from vigil_monitoring.drift.results import LabelShift, name_of
from vigil_monitoring.drift.streams import Stream, arcsine, histograms
from vigil_monitoring.drift.windows import Comparison

LAST_WINDOWS = 7
"""Windows of the estimates."""

CONFIDENCE = 0.95
"""Confidence of the intervals."""


def label_shifts(compared: Comparison, streams: Sequence[Stream]) -> list[LabelShift]:
    """Return the prevalence of each label and slice whose label shift is tested, in the last windows."""
    references, results = len(compared.reference.windows), []
    summaries = [each.summary for each in (*compared.reference.windows, *compared.windows)]
    recent = slice(max(references, len(summaries) - LAST_WINDOWS), None)
    for stream in streams:
        if stream.kind != "label shift" or stream.label is None:
            continue
        bins = len(compared.plan.edges[stream.label]) + 1
        counts_NB, sums_NB = histograms(stream.slice_name, stream.label, bins, summaries)
        classes = class_histograms(counts_NB[:references].sum(axis=0), sums_NB[:references].sum(axis=0))
        now_B = counts_NB[recent].sum(axis=0)
        if classes is None or not now_B.sum():
            continue
        fit = fit_shift(classes, now_B)
        results.append(
            LabelShift(
                stream.label,
                name_of(stream.slice_name),
                classes.prevalence,
                float(sums_NB[recent].sum() / now_B.sum()),
                fit.prevalence,
                _interval(stream, references, recent, fit.prevalence),
                black_box_prevalence(classes, now_B),
                fit.distance,
                fit.unexplained,
            )
        )
    return results


def _interval(stream: Stream, references: int, recent: slice, prevalence: float) -> Interval | None:
    """Return the interval of a prevalence from how windows vary around the means of the reference and of the last ones."""
    parts = [arcsine(stream.cases_N[at], stream.totals_N[at])[stream.totals_N[at] > 0] for at in (slice(references), recent)]
    freedom = sum(len(part) - 1 for part in parts if len(part))
    if freedom < 1 or not len(parts[1]):
        return None
    variance = sum(float(((part - part.mean()) ** 2).sum()) for part in parts if len(part)) / freedom
    reach = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * np.sqrt(variance / len(parts[1]))
    middle = np.arcsin(np.sqrt(prevalence))
    low, high = (float(np.sin(np.clip(middle + sign * reach, 0, np.pi / 2)) ** 2) for sign in (-1, 1))
    return Interval(low, high)
