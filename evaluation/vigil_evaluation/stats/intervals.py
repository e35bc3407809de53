"""Where a number lies, given how it scatters over bootstrap replicates.

One way for all numbers: percentiles of the replicates, corrected for bias and skewness (BCa, Efron 1987) with a sixth of the
replicates' skewness for the acceleration, which for a mean is what the jackknife gives. They are replicates themselves, so they
never leave the number's range. docs/decisions/0009-intervals.md has the coverage measured, and that of the other ways.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import Floats

FEWEST = 0.5
"""The smallest share of the replicates in which a number must be defined for it to have an interval."""

FASTEST = 0.05
"""The largest acceleration: that of a mean over 30 items whose skewness is 1.6."""

FARTHEST = 1.0
"""The largest bias that is corrected, in standard deviations."""

BESIDE = 0.01
"""The share of the replicates that may lie on the other side of a number at the end of its range."""

ROUNDING = 1e-6

COLUMNS = 4096
"""Numbers whose replicates are sorted at once."""


class Interval(NamedTuple):
    """Two numbers between which another lies with a stated confidence."""

    low: float
    high: float


def interval(estimate: float | None, samples_R: ArrayLike, confidence: float) -> Interval | None:
    """The interval of one number.

    Args:
        estimate: the number; ``None`` if it is not defined.
        samples_R: its replicates, NaN where not defined.
        confidence: of the interval, such as 0.95.

    Returns:
        ``None`` if the number is not defined, or too few of its replicates are.
    """
    if estimate is None:
        return None
    low, high = intervals(np.asarray([estimate]), np.asarray(samples_R)[:, None], confidence)
    return None if np.isnan(low[0]) else Interval(float(low[0]), float(high[0]))


def intervals(estimates: ArrayLike, samples: ArrayLike, confidence: float) -> tuple[Floats, Floats]:
    """The intervals of many numbers.

    Args:
        estimates: any shape, NaN where not defined.
        samples: the replicates, ``[R, ...]``, NaN where not defined.
        confidence: of each interval.

    Returns:
        The lower and the upper ends, NaN where there is none; the number itself is always between them.
    """
    values, drawn = np.asarray(estimates, np.float64), np.asarray(samples)
    ends = np.full((2, values.size), np.nan)
    flat_E, drawn_RE = values.ravel(), drawn.reshape(len(drawn), values.size)
    for first in range(0, values.size if len(drawn) else 0, COLUMNS):
        some = slice(first, first + COLUMNS)
        defined_E = (~np.isnan(drawn_RE[:, some])).sum(axis=0)
        kept = first + np.flatnonzero(~np.isnan(flat_E[some]) & (defined_E >= max(FEWEST * len(drawn), 1)))
        if len(kept):
            ends[:, kept] = _ends(flat_E[kept], drawn_RE[:, kept].T.astype(np.float64), defined_E[kept - first], confidence)
    return ends[0].reshape(values.shape), ends[1].reshape(values.shape)


def _ends(values_E: Floats, drawn_ER: Floats, defined_E: NDArray[np.int64], confidence: float) -> Floats:
    from scipy.special import ndtr, ndtri

    drawn_ER.sort(axis=1)  # NaN last
    there_ER = ~np.isnan(drawn_ER)
    # A replicate that differs by a rounding of float32 alone equals the number, and counts half.
    rounding_E = ROUNDING * np.maximum(np.abs(values_E), 0.1)
    below = sum((drawn_ER < (values_E + side * rounding_E)[:, None]).sum(1) for side in (-1, 1)) / (2 * defined_E)
    # A number with its replicates on one side lies at the end of its range: there is no bias to correct.
    inside = np.abs(below - 0.5) < 0.5 - BESIDE
    bias = np.where(inside, np.clip(ndtri(np.where(inside, below, 0.5)), -FARTHEST, FARTHEST), 0.0)
    means_E1 = np.where(there_ER, drawn_ER, 0.0).sum(1, keepdims=True) / defined_E[:, None]
    apart_ER = np.where(there_ER, drawn_ER - means_E1, 0.0)
    spread_E = np.maximum(np.sqrt((apart_ER**2).sum(1) / defined_E), ROUNDING * rounding_E)
    skewness = ((apart_ER / spread_E[:, None]) ** 3).sum(1) / defined_E
    acceleration = np.clip(skewness / 6, -FASTEST, FASTEST)
    rows, ends = np.arange(len(values_E)), []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        moved = bias + NormalDist().inv_cdf(tail)
        place = ndtr(bias + moved / (1 - acceleration * moved)) * (defined_E - 1)
        under = np.floor(place).astype(np.int64)
        over = np.minimum(under + 1, defined_E - 1)
        ends.append(drawn_ER[rows, under] + (place - under) * (drawn_ER[rows, over] - drawn_ER[rows, under]))
    return np.stack([np.minimum(ends[0], values_E), np.maximum(ends[1], values_E)])
