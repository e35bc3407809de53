"""Candidate thresholds of one label with exact counts, which a reader can try on the page."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats, OperatingPoints

EVEN_STEPS = 100
"""Candidates at even distances between 0 and 1."""

RATE_STEPS = 60
"""Candidates at even steps of recall, and of the logarithm of the false-positive rate, so that rare labels have some too."""

TABLE_ROWS = 10


@dataclass(frozen=True, slots=True)
class CandidateThreshold:
    """Counts at one threshold; under weights, numbers of items that the rows represent.

    Attributes:
        threshold: lowest probability that is flagged.
        true_positives: flagged positives.
        false_positives: flagged negatives.
        flagged: flagged items, with known or unknown target.
        current: whether this is the label's own threshold.
    """

    threshold: float
    true_positives: float
    false_positives: float
    flagged: float
    current: bool


@dataclass(frozen=True, slots=True)
class ThresholdExplorer:
    """Candidate thresholds of one label.

    Attributes:
        candidates: by rising threshold, the label's own included.
        positives: known positives.
        negatives: known negatives.
        items: all items.
    """

    candidates: list[CandidateThreshold]
    positives: float
    negatives: float
    items: float

    @property
    def current(self) -> int:
        """Index of the label's own threshold."""
        return next(i for i, candidate in enumerate(self.candidates) if candidate.current)

    @property
    def table_rows(self) -> list[CandidateThreshold]:
        """About ten candidates at even steps of recall, and the label's own threshold."""
        recall = np.array([candidate.true_positives for candidate in self.candidates]) / max(self.positives, 1)
        # The highest threshold that reaches each recall flags the fewest negatives.
        wanted = {int(np.flatnonzero(recall >= level)[-1]) for level in np.linspace(1, 0.1, TABLE_ROWS) if self.positives}
        return [self.candidates[i] for i in sorted({*wanted, self.current})]

    def to_json(self) -> str:
        """Return the counts as columns, for the script."""
        columns = {
            name: [_short(getattr(candidate, name)) for candidate in self.candidates]
            for name in ("true_positives", "false_positives", "flagged")
        }
        columns["threshold"] = [candidate.threshold for candidate in self.candidates]
        totals = {name: _short(getattr(self, name)) for name in ("positives", "negatives", "items")}
        counts = totals | {"current": self.current}
        return json.dumps(columns | counts, separators=(",", ":"))


def threshold_explorer(
    points: OperatingPoints, probabilities_N: Floats, threshold: float, weights_N: Floats | None = None
) -> ThresholdExplorer:
    """Choose candidate thresholds and count at each.

    Args:
        points: operating points of the known items.
        probabilities_N: probabilities of all items.
        threshold: the label's own threshold.
        weights_N: number of items that each item represents; ``None`` for 1 each.
    """
    candidates = np.unique([*_rounded(np.linspace(0, 1, EVEN_STEPS + 1)), *_rounded(_rate_steps(points)), threshold])
    order = np.argsort(probabilities_N)
    scores, sorted_N = points.thresholds[::-1], probabilities_N[order]
    above_N = np.arange(len(order), -1, -1) if weights_N is None else np.append(np.cumsum(weights_N[order][::-1])[::-1], 0.0)
    # Operating points are sorted by falling score, so the number of scores that reach a threshold indexes the counts.
    reached = len(scores) - np.searchsorted(scores, candidates, side="left")
    true_positives, false_positives = (
        np.append(0, counts)[reached] for counts in (points.true_positives, points.false_positives)
    )
    flagged = above_N[np.searchsorted(sorted_N, candidates, side="left")]
    columns = zip(candidates.tolist(), true_positives.tolist(), false_positives.tolist(), flagged.tolist(), strict=True)
    return ThresholdExplorer(
        [CandidateThreshold(*numbers, current=numbers[0] == threshold) for numbers in columns],
        points.positives,
        points.negatives,
        above_N[0].item(),
    )


def _short(count: float) -> float:
    """Round a number of represented items to a tenth."""
    return count if isinstance(count, int) else round(count, 1)


def _rate_steps(points: OperatingPoints) -> Floats:
    """Return scores at even steps of recall, and of the logarithm of the false-positive rate."""
    if not len(points.thresholds):
        return np.empty(0)
    indices: list[NDArray[np.int64]] = []
    if points.positives:
        indices.append(np.searchsorted(points.true_positives, np.linspace(0, 1, RATE_STEPS + 1) * points.positives))
    if points.negatives:
        indices.append(np.searchsorted(points.false_positives, np.geomspace(1, points.negatives, RATE_STEPS)))
    at = np.unique(np.concatenate(indices)) if indices else np.empty(0, np.int64)
    return points.thresholds[at[at < len(points.thresholds)]]


def _rounded(thresholds: Floats) -> list[float]:
    """Round to four digits, which a reader can type; counts are those at the rounded threshold."""
    return [float(f"{value:.4g}") for value in thresholds.tolist()]
