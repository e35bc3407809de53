"""Proportions and means of groups of items, with intervals that account for clustered items.

Items generated from one template pass or fail together, so an interval that assumed independence would be too narrow. Each result
names the method of its interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.binomial import clopper_pearson, korn_graubard, wilson
from vigil_evaluation.stats.bootstrap import Resampling, replicate_ratio
from vigil_evaluation.stats.intervals import Interval, interval

MIN_ITEMS_FOR_WILSON = 40
"""Fewest independent items for Wilson's interval; the exact one is used below (Brown, Cai, DasGupta 2001, section 5)."""

MIN_UNITS_FOR_BOOTSTRAP = 60
"""Fewest units for the bootstrap over units, whose intervals are too narrow below."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """A proportion with its interval.

    Attributes:
        count: number of items, whatever their weights.
        hits: number of successes, whatever their weights.
        value: the proportion, by weight if items have weights; ``None`` with fewer than ``enough`` items.
        interval: interval of the proportion; ``None`` for items of a single unit, which do not show how others would differ.
        method: method of the interval: ``clopper-pearson`` or ``wilson`` for independent items; ``bootstrap of units`` or, with
            few units, ``korn-graubard`` for items that share units or have weights.
        units: number of units (such as templates); ``count`` if each item is its own unit.
    """

    count: int
    hits: int
    value: float | None
    interval: Interval | None
    method: str | None
    units: int


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean with its interval: from Student's distribution over units, or their bootstrap if they are many.

    Attributes:
        count: number of values.
        value: the mean, by weight if items have weights; ``None`` with fewer than ``enough`` values.
        interval: interval of the mean; ``None`` for values of a single unit.
        units: number of units.
    """

    count: int
    value: float | None
    interval: Interval | None
    units: int


@dataclass(frozen=True, slots=True)
class ResamplingUnits:
    """Units that are resampled together.

    Attributes:
        column: column of the units; ``None`` if each row is its own unit.
        codes_N: unit of each row, from 0; ``None`` without a column.
    """

    column: str | None = None
    codes_N: NDArray[np.int32] | None = None

    def of(self, rows: NDArray[np.int64]) -> "ResamplingUnits":
        """Return the units of some rows, renumbered from 0."""
        return self if self.codes_N is None else ResamplingUnits(self.column, _numbered(self.codes_N[rows]))


def group_proportions(  # noqa: PLR0917 (a table, and how it is sampled)
    hits_NK: Floats,
    codes_N: NDArray[np.int32],
    groups: int,
    units: ResamplingUnits,
    spec: EvaluationSpec,
    weights_N: Floats | None = None,
) -> list[list[Proportion]]:
    """Return the proportion of successes in each group and column.

    Args:
        hits_NK: 1 for a success, 0 for a failure, NaN for values that do not count.
        codes_N: group of each row, -1 for none.
        groups: number of groups.
        units: units that are resampled together.
        spec: settings of the intervals, and the fewest items.
        weights_N: number of items that each row represents, finite and at least 0; ``None`` for 1 each.

    Returns:
        ``[groups][K]``.
    """
    hits_NK = _without_weightless(hits_NK, weights_N)
    counted_NK = ~np.isnan(hits_NK)
    one_NK = np.nan_to_num(hits_NK)
    counts_GK, hits_GK = (_sums(values, codes_N, groups) for values in (counted_NK.astype(np.float64), one_NK))
    units_GK, spread_GK, effective_GK = counts_GK.astype(np.int64), np.zeros_like(counts_GK), counts_GK
    values_GK = hits_GK / np.maximum(counts_GK, 1)
    if units.codes_N is not None or weights_N is not None:
        units_GK, spread_GK, effective_GK = _units(hits_NK, codes_N, groups, units.codes_N, weights_N)
    if weights_N is not None:
        above, below = (_sums(of * weights_N[:, None], codes_N, groups) for of in (one_NK, counted_NK))
        values_GK = above / np.where(below > 0, below, 1.0)
    samples_RGK = None
    dependent_GK = (units_GK < counts_GK) | (weights_N is not None)
    if spec.replicates and (dependent_GK & (units_GK >= MIN_UNITS_FOR_BOOTSTRAP)).any():
        resampling = Resampling(spec.replicates, spec.seed, units.codes_N)
        _, samples_RGK = replicate_ratio(one_NK, counted_NK.astype(np.float64), [(codes_N, groups)], resampling, weights_N)
    made: list[list[Proportion]] = []
    for g in range(groups):
        row = []
        for k in range(hits_NK.shape[1]):
            count, hits, of = int(counts_GK[g, k]), int(hits_GK[g, k]), int(units_GK[g, k])
            samples_R = None if samples_RGK is None or of < MIN_UNITS_FOR_BOOTSTRAP else samples_RGK[:, g, k]
            value = float(values_GK[g, k])
            if weights_N is None:
                method, found = _interval(hits, count, of, float(spread_GK[g, k]), samples_R, spec)
            else:
                method, found = _weighted_interval(
                    value, count, of, float(spread_GK[g, k]), float(effective_GK[g, k]), samples_R, spec
                )
            row.append(Proportion(count, hits, value if count >= spec.enough else None, found, method, of))
        made.append(row)
    return made


def _interval(  # noqa: PLR0917 (counts of one cell)
    hits: int, count: int, units: int, spread: float, samples_R: NDArray[np.float32] | None, spec: EvaluationSpec
) -> tuple[str | None, Interval | None]:
    """Return the method and its interval; ``None`` for too few items, or without intervals."""
    if count < spec.enough or spec.replicates == 0:
        return None, None
    if units == count and count < MIN_ITEMS_FOR_WILSON:
        return "clopper-pearson", clopper_pearson(hits, count, spec.confidence)
    if units == count:
        return "wilson", wilson(hits, count, spec.confidence)
    if units < 2:
        return None, None
    if samples_R is None or hits in (0, count):
        return "korn-graubard", korn_graubard(hits, count, units, spread, spec.confidence)
    found = interval(hits / count, samples_R.astype(np.float64), spec.confidence)
    return (None if found is None else "bootstrap of units"), found


def _weighted_interval(  # noqa: PLR0917 (numbers of one cell)
    value: float,
    count: int,
    units: int,
    spread: float,
    effective: float,
    samples_R: NDArray[np.float32] | None,
    spec: EvaluationSpec,
) -> tuple[str | None, Interval | None]:
    """Return the method and interval of a weighted proportion; see :func:`_units` for the spread and the effective units."""
    if count < spec.enough or spec.replicates == 0 or units < 2:
        return None, None
    if value in (0.0, 1.0):
        return "korn-graubard", clopper_pearson(value * effective, effective, spec.confidence)
    if samples_R is None:
        return "korn-graubard", korn_graubard(value * count, count, units, spread, spec.confidence)
    found = interval(value, samples_R.astype(np.float64), spec.confidence)
    return (None if found is None else "bootstrap of units"), found


def group_means(  # noqa: PLR0917 (a table, and how it is sampled)
    values_NK: Floats,
    codes_N: NDArray[np.int32],
    groups: int,
    units: ResamplingUnits,
    spec: EvaluationSpec,
    weights_N: Floats | None = None,
) -> list[list[MeanEstimate]]:
    """Return the mean of each group and column, ``[groups][K]``; see :func:`group_proportions` for the arguments."""
    values_NK = _without_weightless(values_NK, weights_N)
    counted_NK = ~np.isnan(values_NK)
    known_NK, filled_NK = counted_NK.astype(np.float64), np.nan_to_num(values_NK)
    each_N1 = np.ones((len(codes_N), 1)) if weights_N is None else weights_N[:, None]
    counts_GK, masses_GK, sums_GK = (
        _sums(values, codes_N, groups) for values in (known_NK, known_NK * each_N1, filled_NK * each_N1)
    )
    units_GK, spread_GK, _ = _units(values_NK, codes_N, groups, units.codes_N, weights_N)
    samples_RGK = None
    if spec.replicates and (units_GK >= MIN_UNITS_FOR_BOOTSTRAP).any():
        resampling = Resampling(spec.replicates, spec.seed, units.codes_N)
        _, samples_RGK = replicate_ratio(filled_NK, known_NK, [(codes_N, groups)], resampling, weights_N)
    made: list[list[MeanEstimate]] = []
    for g in range(groups):
        row = []
        for k in range(values_NK.shape[1]):
            count, of, found = int(counts_GK[g, k]), int(units_GK[g, k]), None
            value = float(sums_GK[g, k] / masses_GK[g, k]) if count >= max(spec.enough, 1) else None
            if value is not None and samples_RGK is not None and of >= MIN_UNITS_FOR_BOOTSTRAP:
                found = interval(value, samples_RGK[:, g, k].astype(np.float64), spec.confidence)
            elif value is not None and spec.replicates and of >= 2:
                found = _student(value, count, of, float(spread_GK[g, k]), spec.confidence)
            row.append(MeanEstimate(count, value, found, of))
        made.append(row)
    return made


def _student(value: float, count: int, units: int, spread: float, confidence: float) -> Interval:
    """Return the interval of a mean over units, by the linearised variance of a ratio (Cochran 1977, section 11.7)."""
    from scipy.special import stdtrit

    half = float(stdtrit(units - 1, 0.5 + confidence / 2)) * (units / (units - 1) * spread) ** 0.5 / count
    return Interval(value - half, value + half)


def _sums(values_NK: Floats, codes_N: NDArray[np.int32], groups: int) -> Floats:
    """Return the sum of each column in each group, ``[groups, K]``."""
    inside_N = codes_N >= 0
    inside_NK = values_NK[inside_N]
    columns: Sequence[Floats] = [np.bincount(codes_N[inside_N], one_N, groups).astype(np.float64) for one_N in inside_NK.T]
    return np.stack(columns, axis=1) if columns else np.zeros((groups, 0))


def _without_weightless(values_NK: Floats, weights_N: Floats | None) -> Floats:
    return values_NK if weights_N is None else np.where(weights_N[:, None] > 0, values_NK, np.nan)


def _units(
    hits_NK: Floats, codes_N: NDArray[np.int32], groups: int, units_N: NDArray[np.int32] | None, weights_N: Floats | None
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return the number of units, their sum of squared deviations, and their effective number, ``[groups, K]`` each.

    Deviations are those of sums by weight, at a mean weight of 1 in each group and column. The effective number (Kish 1965) is
    that of as many units of equal weight.
    """
    shape = (groups, hits_NK.shape[1])
    found_GK, spread_GK, effective_GK = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
    unit_N = np.arange(len(codes_N)) if units_N is None else units_N.astype(np.int64)
    size = int(unit_N.max(initial=0)) + 1
    each_N = np.ones(len(codes_N)) if weights_N is None else weights_N
    for k, hits_N in enumerate(hits_NK.T):
        rows = ~np.isnan(hits_N) & (codes_N >= 0)
        pairs_U, place = np.unique(codes_N[rows].astype(np.int64) * size + unit_N[rows], return_inverse=True)
        group_U, many = pairs_U // size, len(pairs_U)
        hits_U, masses_U = (np.bincount(place, of, many) for of in (hits_N[rows] * each_N[rows], each_N[rows]))
        found_GK[:, k] = np.bincount(group_U, minlength=groups)
        hits_G, masses_G, squares_G = (np.bincount(group_U, of_U, groups) for of_U in (hits_U, masses_U, masses_U**2))
        rows_G = np.bincount(codes_N[rows], minlength=groups)
        scale_G, masses_G = rows_G / np.where(masses_G > 0, masses_G, 1.0), np.where(masses_G > 0, masses_G, 1.0)
        apart_U = hits_U - masses_U * (hits_G / masses_G)[group_U]
        spread_GK[:, k] = np.bincount(group_U, apart_U**2, groups) * scale_G**2
        effective_GK[:, k] = masses_G**2 / np.where(squares_G > 0, squares_G, 1.0)
    return found_GK, spread_GK, effective_GK


def _numbered(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.unique(codes, return_inverse=True)[1].astype(np.int32)
