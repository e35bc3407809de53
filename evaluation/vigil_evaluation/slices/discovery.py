"""Search for the worst slices among all values, and all pairs of values, of some columns.

Some of thousands of slices always look bad by chance. A slice is listed only if it is worse than the rest by an exact test whose
p-value is corrected for the number of slices searched (Holm 1979: the probability of listing any slice wrongly is at most the
level, however the slices overlap). A pair of values is listed only if it is also worse than each of its two values alone, so that
one bad value does not reappear in every pair that contains it (after Slice Finder, Chung et al. 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.slices.grouping import TableColumns
from vigil_evaluation.stats.binomial import design_effect
from vigil_evaluation.stats.exact_tests import ErrorCounts, fisher_p_values
from vigil_evaluation.stats.intervals import Interval, interval
from vigil_evaluation.stats.multiple_testing import holm

if TYPE_CHECKING:
    from vigil_evaluation.stats.bootstrap import Resampling

FAMILYWISE_ERROR_RATE = 0.05
"""Largest probability of listing any slice that is not worse than the rest."""

MIN_JUDGED_ITEMS = 20
MIN_JUDGED_SHARE = 0.001
"""Fewest judged items of a slice that is tested, as a number and as a share of all judged items; both must hold."""

MAX_LISTED_SLICES = 20
"""Largest number of slices that are listed."""

CORRECTION = "Holm"

ITEMS, WRONG, MASS = range(3)
"""Places among the sums of a slice: its judged items; the wrong ones, by weight if items have weights; the weight of all."""

UNWEIGHTED_SUMS = 2
"""Number of these sums if items have no weights."""

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Condition:
    """Value of a column; ``None`` for null."""

    column: str
    value: str | None


@dataclass(frozen=True, slots=True)
class FoundSlice:
    """A slice on which decisions are worse than on the rest.

    Attributes:
        conditions: one or two conditions that all its items meet.
        items: number of items.
        judged: items with at least one known target.
        all_right: share of the judged items whose every known target is decided correctly.
        rest: the same share of all other judged items.
        difference: ``all_right`` minus ``rest``, below 0.
        interval: interval of the difference.
        p_value: of the one-sided test; for a pair, the largest of those against the rest and against the remainder of each value.
        adjusted_p: p-value corrected for all slices searched.
    """

    conditions: list[Condition]
    items: int
    judged: int
    all_right: float
    rest: float
    difference: float
    interval: Interval | None
    p_value: float
    adjusted_p: float


@dataclass(frozen=True, slots=True)
class SliceDiscovery:
    """Result of a search for the worst slices.

    Attributes:
        searched: number of slices tested.
        fewest: fewest judged items of a tested slice.
        correction: name of the correction for multiple testing.
        level: largest corrected p-value of a listed slice.
        found: number of slices at that level; ``slices`` has at most 20 of them.
        slices: the worst first, by the end nearest 0 of a normal interval of the difference.
        pruned: number of pairs of values that are worse than the rest but not worse than each of their two values alone.
    """

    searched: int
    fewest: int
    correction: str
    level: float
    found: int
    slices: list[FoundSlice]
    pruned: int


class _Column(NamedTuple):
    """Values of a column with enough judged items, their sums, and each row's place among them (-1 for none)."""

    name: str
    values: list[str | None]
    sums_KX: Floats
    codes_N: Integers


class _Slices(NamedTuple):
    """K slices: places of their columns and of the values in them (the second is -1 for a single value), and their sums."""

    columns_K2: Integers
    codes_K2: Integers
    sums_KX: Floats


class _Search(NamedTuple):
    """The J judged rows, what is summed of each (see :func:`_summands`), the unit of each, and the columns."""

    rows_J: Integers
    summands_JX: Floats
    units_J: Integers | None
    columns: list[_Column]


def discover_slices(  # noqa: PLR0917 (a table, and how it is searched)
    columns: TableColumns,
    names: Sequence[str],
    right_N: Floats,
    resampling: "Resampling",
    confidence: float = 0.95,
    weights_N: Floats | None = None,
) -> SliceDiscovery:
    """Search all values, and all pairs of values, of some columns for the slices on which decisions are worst.

    The search is one-sided (worse, not better) and uses judged items only. If ``resampling`` has units, such as authors, the
    counts of both sides are divided by their design effects (Rao and Scott 1992), as errors of one unit are correlated. If items
    have weights, shares are weighted, and counts are those of as many equally weighted items as would be as precise.

    Args:
        columns: the predictions table.
        names: columns to search, with one plain value per item.
        right_N: 1 for an item whose every known target is decided correctly, 0 for another, NaN for one that is not judged.
        resampling: bootstrap of the intervals; without replicates there are none.
        confidence: of the intervals.
        weights_N: number of items that each row represents; ``None`` for 1 each.
    """
    rows_J = np.flatnonzero(~np.isnan(right_N) & (True if weights_N is None else weights_N > 0))
    summands_JX = _summands(1.0 - right_N[rows_J], None if weights_N is None else weights_N[rows_J])
    fewest = max(MIN_JUDGED_ITEMS, int(np.ceil(MIN_JUDGED_SHARE * len(rows_J))))
    units_J = None if resampling.clusters is None else np.unique(resampling.clusters[rows_J], return_inverse=True)[1]
    held = [_column(columns, name, rows_J, summands_JX, fewest) for name in dict.fromkeys(names)]
    search = _Search(rows_J, summands_JX, units_J, held)
    slices = _tested(search, fewest)
    against_rest = _fisher(slices.sums_KX, _rest(search, slices.sums_KX))
    p_values = np.maximum(against_rest, _against_parents(search, slices))
    kept = np.flatnonzero(holm(p_values) <= FAMILYWISE_ERROR_RATE)
    pruned = int((holm(against_rest) <= FAMILYWISE_ERROR_RATE).sum()) - len(kept)
    if units_J is not None:
        # Units only make p-values larger: a slice that is not found without them is not found with them.
        for place in kept:
            p_values[place] = max(p_values[place], _with_units(search, slices, int(place)))
        kept = np.flatnonzero(holm(p_values) <= FAMILYWISE_ERROR_RATE)
    best = kept[np.argsort(_upper_ends(search, slices.sums_KX, confidence)[kept], kind="stable")][:MAX_LISTED_SLICES]
    adjusted = holm(p_values)[best]
    masks = [_meets(search, slices, int(place)) for place in best]
    intervals = _intervals(right_N, weights_N, masks, resampling, confidence)
    listed = [
        _listed(search, slices, int(place), mask, between=between, p_value=float(p_values[place]), adjusted_p=float(corrected))
        for place, mask, between, corrected in zip(best, masks, intervals, adjusted, strict=True)
    ]
    return SliceDiscovery(len(p_values), fewest, CORRECTION, FAMILYWISE_ERROR_RATE, len(kept), listed, pruned)


def _column(columns: TableColumns, name: str, rows_J: Integers, summands_JX: Floats, fewest: int) -> _Column:
    encoded = columns[name]
    sums_KX = _summed(encoded.codes_N[rows_J], summands_JX, len(encoded.values))
    kept = np.flatnonzero(sums_KX[:, ITEMS] >= fewest)
    place = np.full(len(encoded.values), -1, np.int64)
    place[kept] = np.arange(len(kept))
    values = [None if value is None else str(value) for value in encoded.values.take(pa.array(kept)).to_pylist()]
    return _Column(name, values, sums_KX[kept], place[encoded.codes_N])


def _summands(wrong_J: Floats, weights_J: Floats | None) -> Floats:
    """Return what is summed of each judged row: 1 and whether it is wrong; under weights also their powers, ``[J, 2 or 5]``."""
    ones_J = np.ones_like(wrong_J)
    if weights_J is None:
        return np.stack([ones_J, wrong_J], axis=1)
    squares_J = weights_J**2
    return np.stack([ones_J, wrong_J * weights_J, weights_J, squares_J, wrong_J * squares_J], axis=1)


def _summed(codes_J: Integers, summands_JX: Floats, groups: int) -> Floats:
    """Sum the rows of each group, ``[groups, X]``."""
    return np.stack([np.bincount(codes_J, column_J, groups) for column_J in summands_JX.T], axis=1)


def _error_counts(sums_KX: Floats) -> ErrorCounts:
    """Return the numbers of errors and of items; under weights those of as many equally weighted items as are as precise."""
    if sums_KX.shape[-1] == UNWEIGHTED_SUMS:
        return ErrorCounts(sums_KX[..., WRONG], sums_KX[..., ITEMS])
    _, wrong, masses, squares, wrong_squares = np.moveaxis(sums_KX, -1, 0)
    shares = np.clip(wrong / np.where(masses > 0, masses, 1.0), 0.0, 1.0)
    kish = masses**2 / np.where(squares > 0, squares, 1.0)
    # Variance of a weighted share by linearisation (Cochran 1977, section 11.7), which is larger where errors weigh more.
    spread = (1 - 2 * shares) * wrong_squares + shares**2 * squares
    linear = masses**2 * shares * (1 - shares) / np.where(spread > 0, spread, 1.0)
    items = np.where((shares > 0) & (shares < 1) & (spread > 0), np.minimum(kish, linear), kish)
    return ErrorCounts(shares * items, items)


def _fisher(some_KX: Floats, others_KX: Floats) -> Floats:
    """Return p-values that the first have more errors; effective counts are rounded in favour of the first."""
    some, others = _error_counts(some_KX), _error_counts(others_KX)
    if some_KX.shape[-1] == UNWEIGHTED_SUMS:
        return fisher_p_values(some, others)
    return _fisher_of_effective(some, others)


def _fisher_of_effective(some: ErrorCounts, others: ErrorCounts) -> Floats:
    """Round the counts in favour of the first: it looks better, and the others worse, than they are."""
    fewer = np.floor(others.items)
    p_values = fisher_p_values(
        ErrorCounts(np.floor(some.errors), np.ceil(some.items)), ErrorCounts(np.minimum(np.ceil(others.errors), fewer), fewer)
    )
    return np.where((some.items > 0) & (fewer > 0), p_values, 1.0)


def _tested(search: _Search, fewest: int) -> _Slices:
    """Return every value and pair with enough judged items inside and outside, except pairs that equal one of their values."""
    most = len(search.rows_J) - fewest
    columns, codes, sums = [], [], []

    def add(pair: tuple[int, int], at: Integers, firsts: Integers, seconds: Integers, of_KX: Floats) -> None:
        columns.append(np.tile(pair, (len(at), 1)))
        codes.append(np.stack([firsts, seconds], axis=1))
        sums.append(of_KX[at])

    for c, column in enumerate(search.columns):
        at = np.flatnonzero(column.sums_KX[:, ITEMS] <= most)
        add((c, -1), at, at, np.full(len(at), -1), column.sums_KX)
    for (c, one), (d, other) in combinations(enumerate(search.columns), 2):
        bins, across = len(one.values) * len(other.values), len(other.values)
        first_J, second_J = one.codes_N[search.rows_J], other.codes_N[search.rows_J]
        joint_J = np.where((first_J >= 0) & (second_J >= 0), first_J * across + second_J, bins)
        joint_KX = _summed(joint_J, search.summands_JX, bins + 1)[:bins]
        parents = np.minimum(one.sums_KX[:, None, ITEMS], other.sums_KX[None, :, ITEMS]).ravel()
        items = joint_KX[:, ITEMS]
        at = np.flatnonzero((items >= fewest) & (items <= most) & (items < parents))
        add((c, d), at, at // max(across, 1), at % max(across, 1), joint_KX)
    if not columns:
        return _Slices(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64), np.empty((0, search.summands_JX.shape[1])))
    return _Slices(np.concatenate(columns), np.concatenate(codes), np.concatenate(sums))


def _rest(search: _Search, sums_KX: Floats) -> Floats:
    return np.asarray(search.summands_JX.sum(axis=0) - sums_KX)


def _against_parents(search: _Search, slices: _Slices) -> Floats:
    """Return the larger p-value of each pair against the remainders of its two values; 0 for a single value."""
    p_values = np.zeros(len(slices.codes_K2))
    for side in (0, 1):
        for c, column in enumerate(search.columns):
            at = np.flatnonzero((slices.columns_K2[:, side] == c) & (slices.columns_K2[:, 1] >= 0))
            code, own_KX = slices.codes_K2[at, side], slices.sums_KX[at]
            p_values[at] = np.maximum(p_values[at], _fisher(own_KX, column.sums_KX[code] - own_KX))
    return p_values


def _meets(search: _Search, slices: _Slices, place: int, side: int | None = None) -> NDArray[np.bool_]:
    """Whether each row is in a slice, or meets its first (0) or second (1) condition alone."""
    conditions = [
        search.columns[c].codes_N == code
        for c, code in zip(slices.columns_K2[place].tolist(), slices.codes_K2[place].tolist(), strict=True)
        if c >= 0
    ]
    chosen = conditions if side is None else conditions[side : side + 1]
    return np.asarray(np.logical_and.reduce(chosen))


def _with_units(search: _Search, slices: _Slices, place: int) -> float:
    """Return the largest p-value of a slice against the rest and the remainders of its values, with effective counts."""
    assert search.units_J is not None
    units_J, units = search.units_J, int(search.units_J.max()) + 1

    wrong_J, weights_J = search.summands_JX[:, WRONG], None
    if search.summands_JX.shape[1] > UNWEIGHTED_SUMS:
        weights_J = search.summands_JX[:, MASS]

    def by_unit(mask_J: NDArray[np.bool_]) -> ErrorCounts:
        # Weights are scaled to a mean of 1, so that their sum is the number of items.
        each = np.ones(int(mask_J.sum())) if weights_J is None else weights_J[mask_J]
        scale = len(each) / max(each.sum(), 1e-300)
        sums = (np.bincount(units_J[mask_J], scale * of, units) for of in (wrong_J[mask_J], each))
        return ErrorCounts(*(np.asarray(of, np.float64) for of in sums))

    own_J = _meets(search, slices, place)[search.rows_J]
    own = by_unit(own_J)
    pair = bool(slices.columns_K2[place, 1] >= 0)
    supersets_J = [np.ones_like(own_J), *(_meets(search, slices, place, side)[search.rows_J] for side in range(2 * pair))]
    p_values = []
    for superset_J in supersets_J:
        left = by_unit(superset_J & ~own_J)
        effect, other = design_effect(*own), design_effect(*left)
        some, others = (
            ErrorCounts(np.array([of.errors.sum() / by]), np.array([of.items.sum() / by]))
            for of, by in ((own, effect), (left, other))
        )
        p_values.append(float(_fisher_of_effective(some, others)[0]))
    return max(p_values)


def _upper_ends(search: _Search, sums_KX: Floats, confidence: float) -> Floats:
    """Return the end nearest 0 of a normal interval of each difference, with a success and a failure added to each side."""
    counts, rest = _error_counts(sums_KX), _error_counts(_rest(search, sums_KX))
    shares = [(side.errors + 1) / (side.items + 2) for side in (counts, rest)]
    spread = sum(share * (1 - share) / (side.items + 2) for share, side in zip(shares, (counts, rest), strict=True))
    return np.asarray(shares[1] - shares[0] + NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(spread))


def _intervals(
    right_N: Floats, weights_N: Floats | None, masks: list[NDArray[np.bool_]], resampling: "Resampling", confidence: float
) -> list[Interval | None]:
    """Return the interval of the difference between each slice's share and that of the rest."""
    if not masks or not resampling.replicates:
        return [None] * len(masks)
    from vigil_evaluation.stats.bootstrap import replicate_ratio

    judged_N1 = (~np.isnan(right_N)).astype(np.float64)[:, None]
    right_N1 = np.nan_to_num(right_N)[:, None]
    groups = [mask.astype(np.int32) for mask in masks]
    estimates, samples = replicate_ratio(right_N1, judged_N1, groups, resampling, weights_N)
    differences, replicates = estimates[1::2, 0] - estimates[::2, 0], samples[:, 1::2, 0] - samples[:, ::2, 0]
    return [interval(float(difference), replicates[:, i], confidence) for i, difference in enumerate(differences)]


def _listed(
    search: _Search,
    slices: _Slices,
    place: int,
    mask_N: NDArray[np.bool_],
    *,
    between: Interval | None,
    p_value: float,
    adjusted_p: float,
) -> FoundSlice:
    own_X = slices.sums_KX[place]
    rest_X = _rest(search, own_X)
    total = ITEMS if len(own_X) == UNWEIGHTED_SUMS else MASS
    all_right, others = (1 - float(sums[WRONG] / sums[total]) for sums in (own_X, rest_X))
    conditions = [
        Condition(search.columns[c].name, search.columns[c].values[code])
        for c, code in zip(slices.columns_K2[place].tolist(), slices.codes_K2[place].tolist(), strict=True)
        if c >= 0
    ]
    return FoundSlice(
        conditions=conditions,
        items=int(mask_N.sum()),
        judged=int(own_X[ITEMS]),
        all_right=all_right,
        rest=others,
        difference=all_right - others,
        interval=between,
        p_value=p_value,
        adjusted_p=adjusted_p,
    )
