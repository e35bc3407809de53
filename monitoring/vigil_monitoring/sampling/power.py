"""Expected half-widths of estimates from a sample, before anybody reviews it.

A decision with calibrated probability ``p`` is positive with that probability, so the expected variance of an estimate is a sum
over the population (the anticipated variance of Isaki and Fuller 1982), with Hájek's (1964) approximation for fixed sizes in each
stratum. The half-widths are as good as the calibration.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vigil_monitoring.sampling.design import Weight
from vigil_monitoring.sampling.plan import Plan
from vigil_monitoring.sampling.population import ALLOW, Population, Rows

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
ANY = "decisive label"
"""The label with the highest probability, in tables."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Precision that an estimate is expected to have.

    Attributes:
        metric: ``prevalence``, ``precision`` (of an action) or ``missed`` (prevalence among decisions without action).
        label: the label.
        group: the slice, such as ``language de`` or ``action remove``; empty for all decisions.
        weight: items or exposure.
        expected: the value that the probabilities predict.
        reviewed: expected number of reviewed decisions.
        positives: expected number of positives among these.
        half_width: half of the width of the 95 % interval of the Hájek estimate, which uses reviews only.
        half_width_with_scores: the same of the difference estimate (PPI++ with λ = 1), which uses probabilities too.
    """

    metric: str
    label: str
    group: str
    weight: Weight
    expected: float
    reviewed: float
    positives: float
    half_width: float
    half_width_with_scores: float


_SUMS = ("weight", "positive", "squares", "positive_squares", "sure_squares", "offset", "positive_offset", "noise")
"""Sums of z, zp, g, gp, gp², (1-π)z, (1-π)zp and (1-π)²z²p(1-p), where g = z²(1-π)/π."""


class PrecisionSums:
    """Sums over a population that give the expected precision of every estimate; their number does not grow with the rows.

    Args:
        population: the population, after it was passed over, so that its strata and actions are known.
        plan: inclusion probabilities.
    """

    def __init__(self, population: Population, plan: Plan) -> None:
        self._population, self._plan = population, plan
        self._cells = len(population.strata) * len(population.actions)
        self._labels = [*population.labels, ANY]
        self._weights: tuple[Weight, ...] = ("items",) if plan.exposure is None else ("items", "exposure")
        self._sums = np.zeros((len(self._labels), len(self._weights), len(_SUMS), self._cells))
        self._reviewed_2LC = np.zeros((2, len(self._labels), self._cells))
        self._spread_C = np.zeros(self._cells)

    def add(self, rows: Rows, probability_N: Floats) -> None:
        """Add rows of the population.

        Args:
            rows: the rows.
            probability_N: their inclusion probabilities.
        """
        cell_N = rows.stratum_N * len(self._population.actions) + rows.action_N
        missed_N = 1 - probability_N

        def total(value_N: Floats) -> Floats:
            return np.bincount(cell_N, value_N, self._cells).astype(np.float64)

        self._spread_C += total(probability_N * missed_N)
        for place in range(len(self._labels)):
            known = place < len(self._labels) - 1
            p_N = np.nan_to_num(rows.probability_NL[:, place]) if known else rows.highest_N
            self._reviewed_2LC[:, place] += total(probability_N), total(probability_N * p_N)
            for number, weight in enumerate(self._weights):
                z_N = np.ones(len(p_N)) if weight == "items" else rows.exposure_N
                if z_N is None:
                    continue
                g_N, apart_N = z_N**2 * missed_N / probability_N, missed_N * z_N
                gp_N = g_N * p_N
                parts = (z_N, z_N * p_N, g_N, gp_N, gp_N * p_N, apart_N, apart_N * p_N, apart_N**2 * p_N * (1 - p_N))
                for index, part in enumerate(parts):
                    self._sums[place, number, index] += total(part)

    def results(self) -> list[Precision]:
        """Return the expected precision of each metric, label, slice and weight."""
        found = []
        for metric, label, group, cells in self._estimates():
            for number, weight in enumerate(self._weights):
                one = self._precision(label, number, cells)
                if one is not None:
                    found.append(Precision(metric, self._labels[label], group, weight, *one))
        return found

    def _estimates(self) -> Iterator[tuple[str, int, str, NDArray[np.bool_]]]:
        """Yield metric, label, name of the group, and its cells."""
        population = self._population
        strata, actions = len(population.strata), population.actions
        stratum_C, action_C = np.divmod(np.arange(self._cells), len(actions))
        for label in range(len(population.labels)):
            yield "prevalence", label, "", np.ones(self._cells, np.bool_)
            for place, column in enumerate(population.design.strata.columns):
                values = [population.slices[stratum][place] for stratum in range(strata)]
                for value in sorted(set(values), key=str):
                    own_S = np.array([of == value for of in values])
                    yield "prevalence", label, f"{column} {'unknown' if value is None else value}", own_S[stratum_C]
            if set(actions) > {ALLOW}:
                allowed = [index for index, action in enumerate(actions) if action in (ALLOW, None)]
                yield "missed", label, f"action {ALLOW}", np.isin(action_C, allowed)
        for index in sorted(range(len(actions)), key=lambda index: str(actions[index])):
            if actions[index] not in (ALLOW, None):
                yield "precision", len(population.labels), f"action {actions[index]}", action_C == index

    def _precision(self, label: int, weight: int, cells: NDArray[np.bool_]) -> Sequence[float] | None:
        plan, actions = self._plan, len(self._population.actions)
        final_C = np.repeat(plan.final_S, actions)
        sums = np.stack([np.bincount(final_C[cells], of[cells], len(plan.names)) for of in self._sums[label, weight]])
        z_F, zp_F, g_F, gp_F, gpp_F, apart_F, apart_p_F, noise_F = sums
        if (total := z_F.sum()) == 0:
            return None
        expected = zp_F.sum() / total
        spread_F = np.maximum(np.bincount(final_C, self._spread_C, len(plan.names)), 1e-12)
        squares_F = (1 - 2 * expected) * gp_F + expected**2 * g_F
        plain = squares_F - ((apart_p_F - expected * apart_F) ** 2 + noise_F) / spread_F
        scored = gp_F - gpp_F - noise_F / spread_F
        z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        reviewed, positives = self._reviewed_2LC[:, label, cells].sum(axis=1)
        widths = [z * float(np.sqrt(max(of.sum(), 0.0))) / total for of in (plain, scored)]
        return [float(expected), float(reviewed), float(positives), *map(float, widths)]
