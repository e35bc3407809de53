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
        count: number of items.
        hits: number of successes.
        value: the proportion; ``None`` with fewer than ``enough`` items.
        interval: interval of the proportion; ``None`` for items of a single unit, which do not show how others would differ.
        method: method of the interval: ``clopper-pearson`` or ``wilson`` for independent items; ``bootstrap of units`` or, with
            few units, ``korn-graubard`` for items that share units.
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
        value: the mean; ``None`` with fewer than ``enough`` values.
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


def group_proportions(
    hits_NK: Floats, codes_N: NDArray[np.int32], groups: int, units: ResamplingUnits, spec: EvaluationSpec
) -> list[list[Proportion]]:
    """Return the proportion of successes in each group and column.

    Args:
        hits_NK: 1 for a success, 0 for a failure, NaN for values that do not count.
        codes_N: group of each row, -1 for none.
        groups: number of groups.
        units: units that are resampled together.
        spec: settings of the intervals, and the fewest items.

    Returns:
        ``[groups][K]``.
    """
    counted_NK = ~np.isnan(hits_NK)
    one_NK = np.nan_to_num(hits_NK)
    counts_GK, hits_GK = (_sums(values, codes_N, groups) for values in (counted_NK.astype(np.float64), one_NK))
    units_GK, spread_GK = counts_GK.astype(np.int64), np.zeros_like(counts_GK)
    if units.codes_N is not None:
        units_GK, spread_GK = _units(hits_NK, codes_N, groups, units.codes_N)
    samples_RGK = None
    if spec.replicates and ((units_GK < counts_GK) & (units_GK >= MIN_UNITS_FOR_BOOTSTRAP)).any():
        resampling = Resampling(spec.replicates, spec.seed, units.codes_N)
        _, samples_RGK = replicate_ratio(one_NK, counted_NK.astype(np.float64), [(codes_N, groups)], resampling)
    made: list[list[Proportion]] = []
    for g in range(groups):
        row = []
        for k in range(hits_NK.shape[1]):
            count, hits, of = int(counts_GK[g, k]), int(hits_GK[g, k]), int(units_GK[g, k])
            samples_R = None if samples_RGK is None or of < MIN_UNITS_FOR_BOOTSTRAP else samples_RGK[:, g, k]
            method, found = _interval(hits, count, of, float(spread_GK[g, k]), samples_R, spec)
            row.append(Proportion(count, hits, hits / count if count >= spec.enough else None, found, method, of))
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


def group_means(
    values_NK: Floats, codes_N: NDArray[np.int32], groups: int, units: ResamplingUnits, spec: EvaluationSpec
) -> list[list[MeanEstimate]]:
    """Return the mean of each group and column, ``[groups][K]``; see :func:`group_proportions` for the arguments."""
    counted_NK = ~np.isnan(values_NK)
    known_NK, filled_NK = counted_NK.astype(np.float64), np.nan_to_num(values_NK)
    counts_GK, sums_GK = (_sums(values, codes_N, groups) for values in (known_NK, filled_NK))
    each_N = np.arange(len(codes_N), dtype=np.int32) if units.codes_N is None else units.codes_N
    units_GK, spread_GK = _units(values_NK, codes_N, groups, each_N)
    samples_RGK = None
    if spec.replicates and (units_GK >= MIN_UNITS_FOR_BOOTSTRAP).any():
        _, samples_RGK = replicate_ratio(
            filled_NK, known_NK, [(codes_N, groups)], Resampling(spec.replicates, spec.seed, units.codes_N)
        )
    made: list[list[MeanEstimate]] = []
    for g in range(groups):
        row = []
        for k in range(values_NK.shape[1]):
            count, of, found = int(counts_GK[g, k]), int(units_GK[g, k]), None
            value = float(sums_GK[g, k] / count) if count >= max(spec.enough, 1) else None
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


def _units(
    hits_NK: Floats, codes_N: NDArray[np.int32], groups: int, units_N: NDArray[np.int32]
) -> tuple[NDArray[np.int64], Floats]:
    """Return the number of units and their sum of squared deviations, for each group and column, ``[groups, K]`` each."""
    found_GK, spread_GK = np.zeros((groups, hits_NK.shape[1]), np.int64), np.zeros((groups, hits_NK.shape[1]))
    size = int(units_N.max(initial=0)) + 1
    for k, hits_N in enumerate(hits_NK.T):
        rows = ~np.isnan(hits_N) & (codes_N >= 0)
        pairs_U, place = np.unique(codes_N[rows].astype(np.int64) * size + units_N[rows], return_inverse=True)
        group_U, hits_U, counts_U = pairs_U // size, np.bincount(place, hits_N[rows]), np.bincount(place)
        found_GK[:, k] = np.bincount(group_U, minlength=groups)
        all_hits, all_counts = (np.bincount(group_U, of_U, groups) for of_U in (hits_U, counts_U))
        expected_U = counts_U * (all_hits / np.maximum(all_counts, 1))[group_U]
        spread_GK[:, k] = np.bincount(group_U, (hits_U - expected_U) ** 2, groups)
    return found_GK, spread_GK


def _numbered(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.unique(codes, return_inverse=True)[1].astype(np.int32)
