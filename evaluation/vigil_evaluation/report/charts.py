"""The charts of one label as coordinates: the template draws them as SVG, in the colours of the reader's light or dark theme."""

from dataclasses import dataclass

import numpy as np

from vigil_evaluation.metrics import Floats, decisions_at, known, operating_points, reliability

WIDTH, HEIGHT = 300.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 38.0, 10.0, 12.0, 36.0
"""The plot lies within these margins; all lengths are in units of the SVG's view box."""

CURVE_POINTS = 200
HISTOGRAM_BINS = 20


@dataclass(frozen=True, slots=True)
class Dot:
    """A bin of the reliability chart: its place, its radius and what it says on hover."""

    x: float
    y: float
    radius: float
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
class Charts:
    """What is drawn of one label.

    Attributes:
        curve: SVG path of precision over recall; empty if the label has no ranking.
        prevalence_y: height of the share of positives, which is the precision of guessing.
        operating: where the threshold lies on the curve; ``None`` if it flags nothing or there is no curve.
        dots: the reliability chart.
        reliability_path: SVG path through the dots.
        bars: the histogram of probabilities.
        threshold_x: where the threshold lies on an axis of probability.
    """

    curve: str
    prevalence_y: float
    operating: tuple[float, float] | None
    dots: list[Dot]
    reliability_path: str
    bars: list[Bar]
    threshold_x: float


def charts(targets_N: Floats, probabilities_N: Floats, threshold: float) -> Charts:
    """Place the charts of one label.

    Args:
        targets_N: in [0, 1], NaN for unknown.
        probabilities_N: in [0, 1].
        threshold: the lowest probability that is flagged.
    """
    targets, probabilities = known(targets_N, probabilities_N)
    at = decisions_at(targets, probabilities, threshold)
    operating = (x(at.recall), y(at.precision)) if at.recall is not None and at.precision is not None else None
    prevalence = float(np.mean(targets >= 0.5)) if len(targets) else 0.0
    dots = _dots(targets, probabilities)
    through = "L".join(f"{dot.x:.1f} {dot.y:.1f}" for dot in dots)
    return Charts(
        curve=_curve(targets, probabilities),
        prevalence_y=y(prevalence),
        operating=operating,
        dots=dots,
        reliability_path=f"M{through}" if through else "",
        bars=_bars(targets, probabilities),
        threshold_x=x(min(max(threshold, 0.0), 1.0)),
    )


def x(value: float) -> float:
    """The view box's abscissa of a value in [0, 1]."""
    return round(LEFT + value * (WIDTH - LEFT - RIGHT), 2)


def y(value: float) -> float:
    """The view box's ordinate of a value in [0, 1]; 1 is at the top."""
    return round(HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM), 2)


def _curve(targets: Floats, probabilities: Floats) -> str:
    """The steps whose area is the average precision, thinned to about :data:`CURVE_POINTS`."""
    points = operating_points(targets, probabilities)
    if not points.positives or not points.negatives:
        return ""
    recall = points.true_positives / points.positives
    precision = points.true_positives / (points.true_positives + points.false_positives)
    _, first = np.unique(np.ceil(recall * CURVE_POINTS), return_index=True)
    kept = first[points.true_positives[first] > 0]
    steps = [f"V{y(p):.1f}H{x(r):.1f}" for r, p in zip(recall[kept], precision[kept], strict=True)]
    return f"M{x(0):.1f} {y(float(precision[kept[0]])):.1f}" + "".join(steps)


def _dots(targets: Floats, probabilities: Floats) -> list[Dot]:
    curve = reliability(targets, probabilities)
    return [
        Dot(
            x(probability),
            y(target),
            round(2.0 + 5.0 * float(np.sqrt(items / len(targets))), 2),
            f"{items:,} items: predicted {probability:.0%} on average, {target:.0%} were positive",
        )
        for probability, target, items in zip(
            curve.probability.tolist(), curve.target.tolist(), curve.items.tolist(), strict=True
        )
    ]


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
