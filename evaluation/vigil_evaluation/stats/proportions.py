"""Shares with intervals: of few, of many, and of items that share what they were made from.

Items made from one template stand or fall together, so an interval that took them for independent would be too narrow. The
method that was used stands beside each interval.
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
"""Below this many items the exact interval is taken in place of Wilson's (Brown, Cai, DasGupta 2001, section 5)."""

MIN_UNITS_FOR_BOOTSTRAP = 60
"""Below this many units the bootstrap over units is too sure of itself."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share of things that are so.

    Attributes:
        count: how many there are.
        hits: how many of them are so.
        value: the share; ``None`` where there are fewer than ``enough``.
        interval: of the share.
        method: how the interval was found: ``clopper-pearson`` or ``wilson`` where each stands alone; where several share a unit
            ``bootstrap of units``, or ``korn-graubard`` where that would be too sure of itself. Items of a single unit have no
            interval: nothing tells how others would differ.
        units: how many units they come from (templates, say); ``count`` if each is its own.
    """

    count: int
    hits: int
    value: float | None
    interval: Interval | None
    method: str | None
    units: int


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean, and its interval by Student's distribution over units, or their bootstrap where they are many.

    Attributes:
        count: of how many numbers.
        value: the mean; ``None`` where there are fewer than ``enough``.
        interval: of the mean; ``None`` for numbers of a single unit.
        units: how many units they come from.
    """

    count: int
    value: float | None
    interval: Interval | None
    units: int


@dataclass(frozen=True, slots=True)
class ResamplingUnits:
    """What is resampled together.

    Attributes:
        column: the column that says so; ``None`` if each row is its own.
        codes_N: of each row its unit, from 0 on; ``None`` likewise.
    """

    column: str | None = None
    codes_N: NDArray[np.int32] | None = None

    def of(self, rows: NDArray[np.int64]) -> "ResamplingUnits":
        """The units of some rows."""
        return self if self.codes_N is None else ResamplingUnits(self.column, _numbered(self.codes_N[rows]))


def group_proportions(
    hits_NK: Floats, codes_N: NDArray[np.int32], groups: int, units: ResamplingUnits, spec: EvaluationSpec
) -> list[list[Proportion]]:
    """The share of hits in each group and column.

    Args:
        hits_NK: 1 for a hit, 0 for none, NaN for what is not counted.
        codes_N: of each row its group, -1 for none.
        groups: how many groups there are.
        units: what is resampled together.
        spec: says how many are enough, and what intervals are wanted.

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


def _interval(  # noqa: PLR0917 (facts of one cell)
    hits: int, count: int, units: int, spread: float, samples_R: NDArray[np.float32] | None, spec: EvaluationSpec
) -> tuple[str | None, Interval | None]:
    """The method and what it finds; nothing where there are too few, or no intervals are wanted."""
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
    """The mean of the values in each group and column, ``[groups][K]``; see :func:`shares` for the arguments."""
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
    """Of a mean over units of different sizes, by the linearised variance of a ratio (Cochran 1977, section 11.7)."""
    from scipy.special import stdtrit

    half = float(stdtrit(units - 1, 0.5 + confidence / 2)) * (units / (units - 1) * spread) ** 0.5 / count
    return Interval(value - half, value + half)


def _sums(values_NK: Floats, codes_N: NDArray[np.int32], groups: int) -> Floats:
    """The sum of each column in each group, ``[groups, K]``."""
    inside_N = codes_N >= 0
    inside_NK = values_NK[inside_N]
    columns: Sequence[Floats] = [np.bincount(codes_N[inside_N], one_N, groups).astype(np.float64) for one_N in inside_NK.T]
    return np.stack(columns, axis=1) if columns else np.zeros((groups, 0))


def _units(
    hits_NK: Floats, codes_N: NDArray[np.int32], groups: int, units_N: NDArray[np.int32]
) -> tuple[NDArray[np.int64], Floats]:
    """How many units the counted rows of each group and column come from, and how far those differ, ``[groups, K]`` each."""
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
