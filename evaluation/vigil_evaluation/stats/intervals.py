"""Confidence intervals from bootstrap replicates.

All intervals are bias-corrected and accelerated (BCa, Efron 1987), with a sixth of the replicates' skewness as the acceleration,
which for a mean equals the jackknife's. The ends are percentiles of the replicates, so they stay within the metric's range.
docs/decisions/0009-intervals.md reports the measured coverage of this and of other methods.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import Floats

MIN_DEFINED_SHARE = 0.5
"""Smallest share of the replicates in which a metric must be defined for it to have an interval."""

MAX_ACCELERATION = 0.05
"""Largest acceleration: that of a mean over 30 items whose skewness is 1.6."""

MAX_BIAS = 1.0
"""Largest bias that is corrected, in standard deviations."""

EDGE_SHARE = 0.01
"""Largest share of replicates on the other side of an estimate that lies at the end of its range."""

FLOAT32_ROUNDING = 1e-6
"""Relative rounding error of a replicate."""

CHUNK_METRICS = 4096
"""Number of metrics whose replicates are sorted at once."""


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval."""

    low: float
    high: float


def interval(estimate: float | None, samples_R: ArrayLike, confidence: float) -> Interval | None:
    """Return the interval of one metric.

    Args:
        estimate: its value; ``None`` if undefined.
        samples_R: its replicates, NaN where undefined.
        confidence: two-sided, such as 0.95.

    Returns:
        ``None`` if the metric is undefined, or defined in too few replicates.
    """
    if estimate is None:
        return None
    low, high = intervals(np.asarray([estimate]), np.asarray(samples_R)[:, None], confidence)
    return None if np.isnan(low[0]) else Interval(float(low[0]), float(high[0]))


def intervals(estimates: ArrayLike, samples: ArrayLike, confidence: float) -> tuple[Floats, Floats]:
    """Return the intervals of many metrics.

    Args:
        estimates: any shape, NaN where undefined.
        samples: replicates, ``[R, ...]``, NaN where undefined.
        confidence: two-sided, of each interval.

    Returns:
        Lower and upper ends, NaN without an interval; the estimate is always between them.
    """
    values, drawn = np.asarray(estimates, np.float64), np.asarray(samples)
    ends = np.full((2, values.size), np.nan)
    flat_E, drawn_RE = values.ravel(), drawn.reshape(len(drawn), values.size)
    for first in range(0, values.size if len(drawn) else 0, CHUNK_METRICS):
        some = slice(first, first + CHUNK_METRICS)
        defined_E = (~np.isnan(drawn_RE[:, some])).sum(axis=0)
        kept = first + np.flatnonzero(~np.isnan(flat_E[some]) & (defined_E >= max(MIN_DEFINED_SHARE * len(drawn), 1)))
        if len(kept):
            ends[:, kept] = _ends(flat_E[kept], drawn_RE[:, kept].T.astype(np.float64), defined_E[kept - first], confidence)
    return ends[0].reshape(values.shape), ends[1].reshape(values.shape)


def _ends(values_E: Floats, drawn_ER: Floats, defined_E: NDArray[np.int64], confidence: float) -> Floats:
    from scipy.special import ndtr, ndtri

    drawn_ER.sort(axis=1)  # NaN last
    there_ER = ~np.isnan(drawn_ER)
    # A replicate that differs only by float32 rounding equals the estimate, and counts half.
    rounding_E = FLOAT32_ROUNDING * np.maximum(np.abs(values_E), 0.1)
    below = sum((drawn_ER < (values_E + side * rounding_E)[:, None]).sum(1) for side in (-1, 1)) / (2 * defined_E)
    # An estimate with all replicates on one side lies at the end of its range: there is no bias to correct.
    inside = np.abs(below - 0.5) < 0.5 - EDGE_SHARE
    bias = np.where(inside, np.clip(ndtri(np.where(inside, below, 0.5)), -MAX_BIAS, MAX_BIAS), 0.0)
    means_E1 = np.where(there_ER, drawn_ER, 0.0).sum(1, keepdims=True) / defined_E[:, None]
    apart_ER = np.where(there_ER, drawn_ER - means_E1, 0.0)
    spread_E = np.maximum(np.sqrt((apart_ER**2).sum(1) / defined_E), FLOAT32_ROUNDING * rounding_E)
    skewness = ((apart_ER / spread_E[:, None]) ** 3).sum(1) / defined_E
    acceleration = np.clip(skewness / 6, -MAX_ACCELERATION, MAX_ACCELERATION)
    rows, ends = np.arange(len(values_E)), []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        moved = bias + NormalDist().inv_cdf(tail)
        place = ndtr(bias + moved / (1 - acceleration * moved)) * (defined_E - 1)
        under = np.floor(place).astype(np.int64)
        over = np.minimum(under + 1, defined_E - 1)
        ends.append(drawn_ER[rows, under] + (place - under) * (drawn_ER[rows, over] - drawn_ER[rows, under]))
    return np.stack([np.minimum(ends[0], values_E), np.maximum(ends[1], values_E)])
