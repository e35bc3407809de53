"""Shares with Wilson's interval. Standard library only."""

from math import sqrt
from statistics import NormalDist


def wilson_interval(hits: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a share (Wilson 1927).

    Args:
        hits: number of successes.
        count: number of trials, at least 1.
        confidence: two-sided.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = hits / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = (z * sqrt(share * (1 - share) / count + spread / (4 * count))) / (1 + spread)
    return max(centre - half, 0.0) if hits > 0 else 0.0, min(centre + half, 1.0) if hits < count else 1.0
