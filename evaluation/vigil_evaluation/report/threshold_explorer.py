"""What a reader can try in the report: thresholds of one label, with exact counts at each."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats, OperatingPoints

EVEN = 100
"""Thresholds at even distances between 0 and 1, …"""

SPREAD = 60
"""… and at so many even steps of recall and of the logarithm of the false-positive rate, so that rare labels have some too."""

IN_TABLE = 10


@dataclass(frozen=True, slots=True)
class Tried:
    """What a threshold does: the counts of known items, and of all items.

    Attributes:
        threshold: the lowest probability that is flagged.
        true_positives: positives flagged.
        false_positives: negatives flagged.
        flagged: items flagged, whether their target is known or not.
        current: whether it is the label's own threshold.
    """

    threshold: float
    true_positives: int
    false_positives: int
    flagged: int
    current: bool


@dataclass(frozen=True, slots=True)
class Explorer:
    """The thresholds of one label that can be tried.

    Attributes:
        tried: by rising threshold; the label's own is among them.
        positives: known positives.
        negatives: known negatives.
        items: all items.
    """

    tried: list[Tried]
    positives: int
    negatives: int
    items: int

    @property
    def current(self) -> int:
        """The place of the label's own threshold."""
        return next(i for i, tried in enumerate(self.tried) if tried.current)

    @property
    def rows(self) -> list[Tried]:
        """About ten of them for a table, at even steps of recall, and the label's own."""
        recall = np.array([tried.true_positives for tried in self.tried]) / max(self.positives, 1)
        # The strictest threshold that catches so much, and so the one that flags the fewest negatives.
        wanted = {int(np.flatnonzero(recall >= level)[-1]) for level in np.linspace(1, 0.1, IN_TABLE) if self.positives}
        return [self.tried[i] for i in sorted({*wanted, self.current})]

    def to_json(self) -> str:
        """Columns of numbers, for the script."""
        columns = {
            "threshold": [tried.threshold for tried in self.tried],
            "hits": [tried.true_positives for tried in self.tried],
            "alarms": [tried.false_positives for tried in self.tried],
            "flagged": [tried.flagged for tried in self.tried],
        }
        counts = {"positives": self.positives, "negatives": self.negatives, "items": self.items, "current": self.current}
        return json.dumps(columns | counts, separators=(",", ":"))


def explorer(points: OperatingPoints, probabilities_N: Floats, threshold: float) -> Explorer:
    """Choose thresholds to try, and count what each does.

    Args:
        points: of the known items.
        probabilities_N: of all items.
        threshold: the label's own.
    """
    tried = np.unique([*_round(np.linspace(0, 1, EVEN + 1)), *_round(_spread(points)), threshold])
    scores, everything = points.thresholds[::-1], np.sort(probabilities_N)
    # Operating points are by falling score: of K distinct ones, so many reach the threshold.
    reach = len(scores) - np.searchsorted(scores, tried, side="left")
    hits, alarms = (np.append(0, counts)[reach] for counts in (points.true_positives, points.false_positives))
    flagged = len(everything) - np.searchsorted(everything, tried, side="left")
    columns = zip(tried.tolist(), hits.tolist(), alarms.tolist(), flagged.tolist(), strict=True)
    return Explorer(
        [Tried(*numbers, current=numbers[0] == threshold) for numbers in columns],
        points.positives,
        points.negatives,
        len(probabilities_N),
    )


def _spread(points: OperatingPoints) -> Floats:
    """Scores at even steps of recall, and of the logarithm of the false-positive rate."""
    if not len(points.thresholds):
        return np.empty(0)
    places: list[NDArray[np.int64]] = []
    if points.positives:
        places.append(np.searchsorted(points.true_positives, np.linspace(0, 1, SPREAD + 1) * points.positives))
    if points.negatives:
        places.append(np.searchsorted(points.false_positives, np.geomspace(1, points.negatives, SPREAD)))
    at = np.unique(np.concatenate(places)) if places else np.empty(0, np.int64)
    return points.thresholds[at[at < len(points.thresholds)]]


def _round(thresholds: Floats) -> list[float]:
    """To four digits, which a reader can type; what is counted is counted at the rounded threshold."""
    return [float(f"{value:.4g}") for value in thresholds.tolist()]
