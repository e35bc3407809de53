"""Intervals where no variance can be estimated, as the sample has no positives, or nothing else."""

from collections.abc import Sequence

import numpy as np

from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.survey.cells import Answers, Cell
from vigil_monitoring.survey.probability_sample import Statistic, deviations
from vigil_monitoring.survey.proportion_intervals import absence_bound, degrees_of_freedom, proportion_interval
from vigil_monitoring.survey.share_variance import ROUNDING_VARIANCE


def exact_bounds(cells: Sequence[Cell], totals: Sequence[Statistic], answers: Answers, confidence: float) -> Interval:
    """Return an interval where no variance can be estimated, as the sample has no positives, or nothing else."""
    if len(cells) == 1:
        return _cell_bounds(cells[0], totals[0], answers, confidence, confidence)
    # An end of a captured share errs if one of two ends does: half of the error each.
    ends = [
        _cell_bounds(cell, of, answers, confidence, 0.5 + confidence / 2) if cell.mass else Interval(0.0, 0.0)
        for cell, of in zip(cells, totals, strict=True)
    ]
    low_in, high_in = (end * cells[0].mass for end in ends[0])
    low_out, high_out = (end * cells[1].mass for end in ends[1])
    return Interval(
        low_in / (low_in + high_out) if low_in > 0 else 0.0,
        high_in / (high_in + low_out) if low_out > 0 else 1.0,
    )


def _cell_bounds(cell: Cell, of: Statistic, answers: Answers, confidence: float, one_sided: float) -> Interval:
    """Return the interval of a cell's mean: from its variance, or the bound where the targets of each stratum are equal."""
    mean, sample = of.value / cell.mass, answers.sample
    parts_U = deviations(of.influence_N[:, None] / cell.mass, sample)[:, 0] ** 2
    if 0 < mean < 1 and parts_U.sum() > ROUNDING_VARIANCE:
        return proportion_interval(mean, float(parts_U.sum()), degrees_of_freedom(parts_U), confidence)
    inside_N = cell.mass_N > 0
    represented_N = (cell.mass_N * sample.weights_N)[inside_N]
    if (together_N := answers.clusters_N) is not None:
        alone_N = together_N.max(initial=0) + 1 + np.arange(len(together_N))
        cluster_N = np.unique(np.where(together_N < 0, alone_N, together_N)[inside_N], return_inverse=True)[1]
        represented_N = np.bincount(cluster_N, represented_N).astype(np.float64)
    bound = absence_bound(float(represented_N.max()), cell.mass, cell.mass - float(cell.mass_N.sum()), one_sided)
    return Interval(max(mean - bound, 0.0), min(mean + bound, 1.0))
