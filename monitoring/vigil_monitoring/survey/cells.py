"""What a share is estimated from: a part of the population with known mass, and the reviewed rows."""

from typing import NamedTuple

from vigil_evaluation.metrics import Floats
from vigil_monitoring.survey.probability_sample import Codes, ProbabilitySample, Statistic


class Cell(NamedTuple):
    """A part of the population with known mass.

    Attributes:
        mass_N: mass of each reviewed row: 1 or its exposure; 0 outside the cell.
        mass: sum over the population.
        predicted: sum of mass times prediction over the population; ``None`` without predictions.
    """

    mass_N: Floats
    mass: float
    predicted: float | None = None


class Answers(NamedTuple):
    """Reviewed rows of a probability sample; all arrays are aligned.

    Attributes:
        targets_N: targets in [0, 1], all known.
        sample: how the rows were drawn.
        predictions_N: predictions, such as calibrated probabilities; any will do, better ones narrow the intervals more.
        clusters_N: cluster of each row (such as its author), from 0, negative for a row of its own. With clusters, an interval is
            for the process that produces the traffic; without, for the traffic of the period as it was.
    """

    targets_N: Floats
    sample: ProbabilitySample
    predictions_N: Floats | None = None
    clusters_N: Codes | None = None


class LinearizedShare(NamedTuple):
    """A share of totals, linearized.

    Attributes:
        value: the share; corrected, it may be outside [0, 1].
        counted: positive mass of each cell, before the correction.
        totals: after it.
        slopes: derivative of the share by each of the totals.
        tuning: weight of the predictions.
        own_N: influence of the targets.
        moved_N: influence of the predictions times their weight, which is subtracted.
        per_target_N: derivative of a row's influence by its target.
    """

    value: float
    counted: list[float]
    totals: list[Statistic]
    slopes: list[float]
    tuning: float
    own_N: Floats
    moved_N: Floats
    per_target_N: Floats
