"""Sample ratio mismatch: the arms have other shares of the units than were assigned, so they are not comparable.

The Bayes factor of a Beta mixture against the assigned share is a test martingale: its p-value may be read after every unit
(Lindon and Malek 2022, "Anytime-valid inference for multinomial count data", section 3).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln

PRIOR_UNITS = 1000
"""Units to whose number the mixture's spread around the assigned share corresponds: it looks for small mismatches."""

MISMATCH_ALPHA = 0.001
"""Probability of a false alarm at any look."""


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Units of both arms, and the test of their ratio.

    Attributes:
        champion: units of the champion.
        challenger: units of the challenger.
        share: assigned share of the challenger.
        p_value: of the assigned share, valid at every look.
    """

    champion: int
    challenger: int
    share: float
    p_value: float

    @property
    def mismatch(self) -> bool:
        """Whether the arms are not comparable."""
        return self.p_value <= MISMATCH_ALPHA


def log_mismatch_evidence(champion: ArrayLike, challenger: ArrayLike, share: float) -> NDArray[np.float64]:
    """Return the logarithm of the evidence against the assigned share; P(it ever reaches log(1 / alpha)) <= alpha.

    Args:
        champion: units of the champion at each look.
        challenger: units of the challenger at each look.
        share: assigned share of the challenger.
    """
    a, b = PRIOR_UNITS * share, PRIOR_UNITS * (1 - share)
    n, m = np.asarray(challenger, np.float64), np.asarray(champion, np.float64)
    return np.asarray(betaln(a + n, b + m) - betaln(a, b) - n * np.log(share) - m * np.log1p(-share))


def sample_ratio(champion: ArrayLike, challenger: ArrayLike, share: float) -> SampleRatio:
    """Return the test after the last of several looks.

    Args:
        champion: units of the champion up to each look.
        challenger: units of the challenger up to each look.
        share: assigned share of the challenger.
    """
    most = float(np.max(log_mismatch_evidence(champion, challenger, share), initial=0.0))
    last = [int(np.asarray(units)[-1]) for units in (champion, challenger)]
    return SampleRatio(last[0], last[1], share, float(np.exp(-most)))
