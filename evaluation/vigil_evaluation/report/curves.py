"""The pictures of one label as coordinates: the template draws them as SVG, in the colours of the reader's theme."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log10

import numpy as np

from vigil_evaluation.metrics import Floats, OperatingPoints, known, reliability
from vigil_evaluation.results import LabelFindings
from vigil_evaluation.stats.proportions import wilson

WIDTH, HEIGHT = 320.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 10.0, 40.0
"""The plot lies within these margins; all lengths are in units of the SVG's view box."""

CURVE_POINTS = 200
HISTOGRAM_BINS = 25
RELIABILITY_CONFIDENCE = 0.95
DECADES = 4
"""False-positive rates are drawn from ten to the minus this power on."""

RATES = tuple((i / DECADES, text) for i, text in enumerate(("0.01%", "0.1%", "1%", "10%", "100%")))
SHARES = ((0.0, "0"), (0.5, "50%"), (1.0, "100%"))
"""What is written at the bottom axes: places in [0, 1] and their texts."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A bin of the reliability chart: its place, its radius, the ends of its interval and what it says on hover."""

    x: float
    y: float
    radius: float
    low_y: float
    high_y: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram; ``positive`` ones rise from the middle line, the others hang from it."""

    x: float
    y: float
    width: float
    height: float
    positive: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the threshold is on a curve, and the cross of its intervals as an SVG path."""

    x: float
    y: float
    cross: str


@dataclass(frozen=True, slots=True)
class Charts:
    """What is drawn of one label.

    Attributes:
        curve: SVG path of precision over recall; empty if the label has no ranking.
        prevalence_y: height of the share of positives, which is the precision of guessing.
        curve_mark: the threshold on it; ``None`` if it flags nothing or there is no curve.
        roc: SVG path of recall over the false-positive rate, on a logarithmic axis.
        guessing: SVG path of the ROC curve of guessing.
        roc_mark: the threshold on it.
        dots: the reliability chart.
        reliability_path: SVG path through the dots.
        bars: the histogram of probabilities.
        threshold_x: where the threshold lies on an axis of probability.
    """

    curve: str
    prevalence_y: float
    curve_mark: Mark | None
    roc: str
    guessing: str
    roc_mark: Mark | None
    dots: list[Dot]
    reliability_path: str
    bars: list[Bar]
    threshold_x: float


def charts(targets_N: Floats, probabilities_N: Floats, points: OperatingPoints, numbers: LabelFindings) -> Charts:
    """Place the pictures of one label.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        probabilities_N: in [0, 1].
        points: of both.
        numbers: of the label over all items.
    """
    targets, probabilities = known(targets_N, probabilities_N)
    dots = _dots(targets, probabilities)
    through = "L".join(f"{dot.x:.1f} {dot.y:.1f}" for dot in dots)
    drawn = bool(points.positives and points.negatives)
    return Charts(
        curve=_curve(points) if drawn else "",
        prevalence_y=y(points.positives / max(points.positives + points.negatives, 1)),
        curve_mark=_mark(numbers, "recall", "precision", x) if drawn else None,
        roc=_roc(points) if drawn else "",
        guessing="M" + "L".join(f"{x(i / 40):.1f} {y(10 ** (DECADES * (i / 40 - 1))):.1f}" for i in range(41)),
        roc_mark=_mark(numbers, "false_positive_rate", "recall", rate_x) if drawn else None,
        dots=dots,
        reliability_path=f"M{through}" if through else "",
        bars=_bars(targets, probabilities),
        threshold_x=x(min(max(numbers.threshold, 0.0), 1.0)),
    )


def x(value: float) -> float:
    """The view box's abscissa of a value in [0, 1]."""
    return round(LEFT + value * (WIDTH - LEFT - RIGHT), 2)


def y(value: float) -> float:
    """The view box's ordinate of a value in [0, 1]; 1 is at the top."""
    return round(HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM), 2)


def rate_x(value: float) -> float:
    """The view box's abscissa of a rate on a logarithmic axis; rates below its left end are at that end."""
    return x(max(1 + log10(value) / DECADES, 0.0) if value > 0 else 0.0)


def _curve(points: OperatingPoints) -> str:
    """The steps whose area is the average precision, thinned to about :data:`CURVE_POINTS`."""
    recall = points.true_positives / points.positives
    precision = points.true_positives / (points.true_positives + points.false_positives)
    _, first = np.unique(np.ceil(recall * CURVE_POINTS), return_index=True)
    kept = first[points.true_positives[first] > 0]
    steps = [f"V{y(p):.1f}H{x(r):.1f}" for r, p in zip(recall[kept], precision[kept], strict=True)]
    return f"M{x(0):.1f} {y(float(precision[kept[0]])):.1f}" + "".join(steps)


def _roc(points: OperatingPoints) -> str:
    """At each rate the highest recall of those thresholds that flag no larger share of the negatives."""
    rates = points.false_positives / points.negatives
    across = np.ceil(CURVE_POINTS * np.maximum(1 + np.log10(np.maximum(rates, 1e-12)) / DECADES, 0.0))
    last = np.flatnonzero(np.append(across[1:] != across[:-1], True))
    recall = points.true_positives / points.positives
    steps = [f"H{rate_x(rate):.1f}V{y(r):.1f}" for rate, r in zip(rates[last].tolist(), recall[last].tolist(), strict=True)]
    return f"M{x(0):.1f} {y(0):.1f}" + "".join(steps)


def _mark(numbers: LabelFindings, across: str, up: str, to_x: Callable[[float], float]) -> Mark | None:
    """Where the numbers of these names are, with their intervals."""
    values = getattr(numbers, across), getattr(numbers, up)
    if None in values:
        return None
    at_x, at_y = to_x(values[0]), y(values[1])
    cross = ""
    if (interval := numbers.intervals.get(across)) is not None:
        cross += f"M{to_x(interval.low):.1f} {at_y:.1f}H{to_x(interval.high):.1f}"
    if (interval := numbers.intervals.get(up)) is not None:
        cross += f"M{at_x:.1f} {y(interval.low):.1f}V{y(interval.high):.1f}"
    return Mark(at_x, at_y, cross)


def _dots(targets: Floats, probabilities: Floats) -> list[Dot]:
    curve, dots = reliability(targets, probabilities), []
    for probability, target, items in zip(curve.probability.tolist(), curve.target.tolist(), curve.items.tolist(), strict=True):
        low, high = wilson(min(target * items, items), items, RELIABILITY_CONFIDENCE)
        radius = round(2.0 + 5.0 * float(np.sqrt(items / len(targets))), 2)
        text = f"{items:,} items: predicted {probability:.1%} on average, {target:.1%} were positive ({low:.1%} to {high:.1%})"
        dots.append(Dot(x(probability), y(target), radius, y(low), y(high), text))
    return dots


def _bars(targets: Floats, probabilities: Floats) -> list[Bar]:
    """Shares of the positives (up) and of the negatives (down) by probability; the tallest bar fills its half."""
    positive = targets >= 0.5
    counts = [np.histogram(probabilities[side], HISTOGRAM_BINS, (0.0, 1.0))[0] for side in (positive, ~positive)]
    shares = [count / max(int(count.sum()), 1) for count in counts]
    tallest = max(float(share.max()) for share in shares) or 1.0
    half, middle, width = (y(0) - y(1)) / 2, y(0.5), x(1 / HISTOGRAM_BINS) - x(0)
    bars = []
    for is_positive, share in zip((True, False), shares, strict=True):
        for i, value in enumerate(share.tolist()):
            height = round(half * value / tallest, 2)
            if height > 0:
                top = round(middle - height if is_positive else middle, 2)
                bars.append(Bar(x(i / HISTOGRAM_BINS), top, round(width - 1, 2), height, is_positive))
    return bars
