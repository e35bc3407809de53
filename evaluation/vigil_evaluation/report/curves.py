"""Curves of one label as coordinates; the template draws them as SVG in the colours of the theme."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log10

import numpy as np

from vigil_evaluation.metrics import Floats, OperatingPoints, precision_recall_curve, reliability, roc_curve
from vigil_evaluation.metrics.arrays import effective_items, weighted_items
from vigil_evaluation.slices.results import LabelMetrics
from vigil_evaluation.stats.binomial import wilson

WIDTH, HEIGHT = 320.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 10.0, 40.0
"""Margins of the plot, in units of the SVG's view box like all lengths here."""

CURVE_POINTS = 200
HISTOGRAM_BINS = 25
RELIABILITY_CONFIDENCE = 0.95
FPR_DECADES = 4
"""The axis of false-positive rates starts at ten to the minus this power."""

FPR_TICKS = tuple((i / FPR_DECADES, text) for i, text in enumerate(("0.01%", "0.1%", "1%", "10%", "100%")))
SHARE_TICKS = ((0.0, "0"), (0.5, "50%"), (1.0, "100%"))
"""Tick positions in [0, 1] and their texts."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Bin of the reliability diagram: position, radius, ends of the interval, and tooltip."""

    x: float
    y: float
    radius: float
    low_y: float
    high_y: float
    text: str


@dataclass(frozen=True, slots=True)
class HistogramBar:
    """Bar of the probability histogram: positives rise from the middle line, negatives hang from it."""

    x: float
    y: float
    width: float
    height: float
    positive: bool


@dataclass(frozen=True, slots=True)
class ThresholdMark:
    """Operating point of the threshold on a curve, and its two intervals as an SVG path."""

    x: float
    y: float
    cross: str


@dataclass(frozen=True, slots=True)
class LabelCurves:
    """Coordinates of one label's plots.

    Attributes:
        precision_recall: SVG path; empty if one class has no known items.
        prevalence_y: ordinate of the prevalence, which is the precision of a random classifier.
        precision_recall_mark: operating point of the threshold; ``None`` if nothing is flagged or there is no curve.
        roc: SVG path of recall over the false-positive rate on a logarithmic axis.
        random_roc: SVG path of a random classifier.
        roc_mark: operating point of the threshold.
        reliability_bins: bins of the reliability diagram.
        reliability_path: SVG path through the bins.
        histogram: bars of the probability histogram.
        threshold_x: abscissa of the threshold on an axis of probability.
    """

    precision_recall: str
    prevalence_y: float
    precision_recall_mark: ThresholdMark | None
    roc: str
    random_roc: str
    roc_mark: ThresholdMark | None
    reliability_bins: list[ReliabilityBin]
    reliability_path: str
    histogram: list[HistogramBar]
    threshold_x: float


def label_curves(
    targets_N: Floats,
    probabilities_N: Floats,
    points: OperatingPoints,
    numbers: LabelMetrics,
    weights_N: Floats | None = None,
) -> LabelCurves:
    """Compute the coordinates of one label's plots.

    Args:
        targets_N: targets in [0, 1]; NaN is unknown.
        probabilities_N: probabilities in [0, 1].
        points: operating points of both, with the same weights.
        numbers: metrics of the label over all items.
        weights_N: number of items that each represents; ``None`` for 1 each.
    """
    targets, probabilities, weights = weighted_items(targets_N, probabilities_N, weights_N)
    each = np.ones(len(targets)) if weights is None else weights
    bins = _reliability_bins(targets, probabilities, each)
    through = "L".join(f"{bin_.x:.1f} {bin_.y:.1f}" for bin_ in bins)
    both_classes = bool(points.positives and points.negatives)
    return LabelCurves(
        precision_recall=_precision_recall(points) if both_classes else "",
        prevalence_y=y(points.positives / max(points.positives + points.negatives, 1)),
        precision_recall_mark=_mark(numbers, "recall", "precision", x) if both_classes else None,
        roc=_roc(points) if both_classes else "",
        random_roc="M" + "L".join(f"{x(i / 40):.1f} {y(10 ** (FPR_DECADES * (i / 40 - 1))):.1f}" for i in range(41)),
        roc_mark=_mark(numbers, "false_positive_rate", "recall", fpr_x) if both_classes else None,
        reliability_bins=bins,
        reliability_path=f"M{through}" if through else "",
        histogram=_histogram(targets, probabilities, each),
        threshold_x=x(min(max(numbers.threshold, 0.0), 1.0)),
    )


def x(value: float) -> float:
    """Return the view box's abscissa of a value in [0, 1]."""
    return round(LEFT + value * (WIDTH - LEFT - RIGHT), 2)


def y(value: float) -> float:
    """Return the view box's ordinate of a value in [0, 1]; 1 is at the top."""
    return round(HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM), 2)


def fpr_x(value: float) -> float:
    """Return the view box's abscissa of a rate on the logarithmic axis; lower rates are clipped to its left end."""
    return x(max(1 + log10(value) / FPR_DECADES, 0.0) if value > 0 else 0.0)


def _precision_recall(points: OperatingPoints) -> str:
    """Return the steps whose area is the average precision, thinned to about :data:`CURVE_POINTS`."""
    recall, precision = precision_recall_curve(points, CURVE_POINTS)
    steps = [f"V{y(p):.1f}H{x(r):.1f}" for r, p in zip(recall, precision, strict=True)]
    return f"M{x(0):.1f} {y(float(precision[0])):.1f}" + "".join(steps)


def _roc(points: OperatingPoints) -> str:
    """Return, at each rate, the highest recall of the thresholds that flag no larger share of the negatives."""
    rates, recall = roc_curve(points, CURVE_POINTS, FPR_DECADES)
    steps = [f"H{fpr_x(rate):.1f}V{y(r):.1f}" for rate, r in zip(rates.tolist(), recall.tolist(), strict=True)]
    return f"M{x(0):.1f} {y(0):.1f}" + "".join(steps)


def _mark(numbers: LabelMetrics, across: str, up: str, to_x: Callable[[float], float]) -> ThresholdMark | None:
    """Return the point of two metrics with their intervals; ``None`` if one is undefined."""
    values = getattr(numbers, across), getattr(numbers, up)
    if None in values:
        return None
    at_x, at_y = to_x(values[0]), y(values[1])
    cross = ""
    if (interval := numbers.intervals.get(across)) is not None:
        cross += f"M{to_x(interval.low):.1f} {at_y:.1f}H{to_x(interval.high):.1f}"
    if (interval := numbers.intervals.get(up)) is not None:
        cross += f"M{at_x:.1f} {y(interval.low):.1f}V{y(interval.high):.1f}"
    return ThresholdMark(at_x, at_y, cross)


def _reliability_bins(targets: Floats, probabilities: Floats, weights: Floats) -> list[ReliabilityBin]:
    curve, bins = reliability(targets, probabilities, weights_N=weights), []
    # Under weights, a bin is as precise as its effective number of equally weighted items, taken as the same share in every bin.
    precision = effective_items(weights) / max(len(weights), 1)
    for probability, target, items in zip(curve.probability.tolist(), curve.target.tolist(), curve.items.tolist(), strict=True):
        effective = items * precision
        low, high = wilson(min(target * effective, effective), effective, RELIABILITY_CONFIDENCE)
        radius = round(2.0 + 5.0 * float(np.sqrt(items / len(targets))), 2)
        text = f"{items:,} items: mean probability {probability:.1%}, {target:.1%} positive ({low:.1%} to {high:.1%})"
        bins.append(ReliabilityBin(x(probability), y(target), radius, y(low), y(high), text))
    return bins


def _histogram(targets: Floats, probabilities: Floats, weights: Floats) -> list[HistogramBar]:
    """Return shares of the positives (up) and of the negatives (down) by probability; the tallest bar fills its half."""
    positive = targets >= 0.5
    counts = [
        np.histogram(probabilities[rows], HISTOGRAM_BINS, (0.0, 1.0), weights=weights[rows])[0] for rows in (positive, ~positive)
    ]
    shares = [count / (float(count.sum()) or 1.0) for count in counts]
    tallest = max(float(share.max()) for share in shares) or 1.0
    half, middle, width = (y(0) - y(1)) / 2, y(0.5), x(1 / HISTOGRAM_BINS) - x(0)
    bars = []
    for is_positive, share in zip((True, False), shares, strict=True):
        for i, value in enumerate(share.tolist()):
            height = round(half * value / tallest, 2)
            if height > 0:
                top = round(middle - height if is_positive else middle, 2)
                bars.append(HistogramBar(x(i / HISTOGRAM_BINS), top, round(width - 1, 2), height, is_positive))
    return bars
