"""Correction of a total for reviewers' errors."""

from collections.abc import Sequence
from typing import NamedTuple

from vigil_monitoring.agreement.accuracy import AnswerAccuracy
from vigil_monitoring.survey.cells import Cell
from vigil_monitoring.survey.probability_sample import Statistic


class Correction(NamedTuple):
    """Correction for reviewers' errors: true total = (total - (1 - specificity) x mass) / (sensitivity + specificity - 1).

    Rogan and Gladen (1978); the variances of sensitivity and specificity enter by the delta method.

    Attributes:
        specificity: share of negatives that are answered negative.
        gain: sensitivity + specificity - 1, above 0.
        variances: of sensitivity and of specificity.
    """

    specificity: float
    gain: float
    variances: tuple[float, float]

    @classmethod
    def by(cls, accuracy: AnswerAccuracy) -> "Correction":
        """Return the correction for measured sensitivity and specificity.

        A share of 1 in ``n`` items has a variance too: that of the share with half an item added to each side (Jeffreys).

        Raises:
            ValueError: if either is unknown, or answers are no better than chance.
        """
        sensitivity, specificity = accuracy.sensitivity, accuracy.specificity
        if sensitivity is None or specificity is None or sensitivity + specificity <= 1:
            raise ValueError("no correction without a sensitivity and a specificity whose sum is above 1")
        variances = [
            (share := (found * count + 0.5) / (count + 1)) * (1 - share) / count
            for found, count in ((sensitivity, accuracy.positives), (specificity, accuracy.negatives))
        ]
        return cls(specificity, sensitivity + specificity - 1, (variances[0], variances[1]))

    def share(self, apparent: float) -> float:
        """Return the true share of an apparent one, which may be outside [0, 1]."""
        return (apparent - (1 - self.specificity)) / self.gain

    def total(self, cell: Cell, apparent: Statistic) -> Statistic:
        """Return the true total of a cell."""
        return Statistic((apparent.value - (1 - self.specificity) * cell.mass) / self.gain, apparent.influence_N / self.gain)

    def variance(self, cells: Sequence[Cell], totals: Sequence[Statistic], slopes: Sequence[float]) -> float:
        """Return the variance that a share of corrected totals has from those of sensitivity and specificity."""
        by_sensitivity = sum(slope * -of.value / self.gain for slope, of in zip(slopes, totals, strict=True))
        by_specificity = sum(
            slope * (cell.mass - of.value) / self.gain for slope, cell, of in zip(slopes, cells, totals, strict=True)
        )
        return self.variances[0] * by_sensitivity**2 + self.variances[1] * by_specificity**2
