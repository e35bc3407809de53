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
    """Values of a column with enough judged items, their counts, and each row's place among them (-1 for none)."""

    name: str
    values: list[str | None]
    counts: ErrorCounts
    codes_N: Integers


class _Slices(NamedTuple):
    """K slices: places of their columns and of the values in them (the second is -1 for a single value), and their counts."""

    columns_K2: Integers
    codes_K2: Integers
    counts: ErrorCounts


class _Search(NamedTuple):
    """The J judged rows, whether each is wrong, the unit of each, and the columns."""

    rows_J: Integers
    wrong_J: Floats
    units_J: Integers | None
    columns: list[_Column]


def discover_slices(
    columns: TableColumns, names: Sequence[str], right_N: Floats, resampling: "Resampling", confidence: float = 0.95
) -> SliceDiscovery:
    """Search all values, and all pairs of values, of some columns for the slices on which decisions are worst.

    The search is one-sided (worse, not better) and uses judged items only. If ``resampling`` has units, such as authors, the
    counts of both sides are divided by their design effects (Rao and Scott 1992), as errors of one unit are correlated.

    Args:
        columns: the predictions table.
        names: columns to search, with one plain value per item.
        right_N: 1 for an item whose every known target is decided correctly, 0 for another, NaN for one that is not judged.
        resampling: bootstrap of the intervals; without replicates there are none.
        confidence: of the intervals.
    """
    rows_J = np.flatnonzero(~np.isnan(right_N))
    wrong_J = 1.0 - right_N[rows_J]
    fewest = max(MIN_JUDGED_ITEMS, int(np.ceil(MIN_JUDGED_SHARE * len(rows_J))))
    units_J = None if resampling.clusters is None else np.unique(resampling.clusters[rows_J], return_inverse=True)[1]
    held = [_column(columns, name, rows_J, wrong_J, fewest) for name in dict.fromkeys(names)]
    search = _Search(rows_J, wrong_J, units_J, held)
    slices = _tested(search, fewest)
    against_rest = fisher_p_values(slices.counts, _rest(search, slices.counts))
    p_values = np.maximum(against_rest, _against_parents(search, slices))
    kept = np.flatnonzero(holm(p_values) <= FAMILYWISE_ERROR_RATE)
    pruned = int((holm(against_rest) <= FAMILYWISE_ERROR_RATE).sum()) - len(kept)
    if units_J is not None:
        # Units only make p-values larger: a slice that is not found without them is not found with them.
        for place in kept:
            p_values[place] = max(p_values[place], _with_units(search, slices, int(place)))
        kept = np.flatnonzero(holm(p_values) <= FAMILYWISE_ERROR_RATE)
    best = kept[np.argsort(_upper_ends(search, slices.counts, confidence)[kept], kind="stable")][:MAX_LISTED_SLICES]
    adjusted = holm(p_values)[best]
    masks = [_meets(search, slices, int(place)) for place in best]
    intervals = _intervals(right_N, masks, resampling, confidence)
    listed = [
        _listed(search, slices, int(place), mask, between=between, p_value=float(p_values[place]), adjusted_p=float(corrected))
        for place, mask, between, corrected in zip(best, masks, intervals, adjusted, strict=True)
    ]
    return SliceDiscovery(len(p_values), fewest, CORRECTION, FAMILYWISE_ERROR_RATE, len(kept), listed, pruned)


def _column(columns: TableColumns, name: str, rows_J: Integers, wrong_J: Floats, fewest: int) -> _Column:
    encoded = columns[name]
    counts = _counted(encoded.codes_N[rows_J], wrong_J, len(encoded.values))
    kept = np.flatnonzero(counts.items >= fewest)
    place = np.full(len(encoded.values), -1, np.int64)
    place[kept] = np.arange(len(kept))
    values = [None if value is None else str(value) for value in encoded.values.take(pa.array(kept)).to_pylist()]
    return _Column(name, values, ErrorCounts(counts.errors[kept], counts.items[kept]), place[encoded.codes_N])


def _counted(codes_J: Integers, wrong_J: Floats, groups: int) -> ErrorCounts:
    """Count the errors and the items of each group."""
    errors, items = np.bincount(codes_J, wrong_J, groups), np.bincount(codes_J, minlength=groups)
    return ErrorCounts(errors.astype(np.float64), items.astype(np.float64))


def _tested(search: _Search, fewest: int) -> _Slices:
    """Return every value and pair with enough judged items inside and outside, except pairs that equal one of their values."""
    most = len(search.rows_J) - fewest
    columns, codes, errors, items = [], [], [], []

    def add(pair: tuple[int, int], at: Integers, firsts: Integers, seconds: Integers, counts: ErrorCounts) -> None:
        columns.append(np.tile(pair, (len(at), 1)))
        codes.append(np.stack([firsts, seconds], axis=1))
        errors.append(counts.errors[at])
        items.append(counts.items[at])

    for c, column in enumerate(search.columns):
        at = np.flatnonzero(column.counts.items <= most)
        add((c, -1), at, at, np.full(len(at), -1), column.counts)
    for (c, one), (d, other) in combinations(enumerate(search.columns), 2):
        bins, across = len(one.values) * len(other.values), len(other.values)
        first_J, second_J = one.codes_N[search.rows_J], other.codes_N[search.rows_J]
        joint_J = np.where((first_J >= 0) & (second_J >= 0), first_J * across + second_J, bins)
        counts = ErrorCounts(*(values[:bins] for values in _counted(joint_J, search.wrong_J, bins + 1)))
        parents = np.minimum(one.counts.items[:, None], other.counts.items[None, :]).ravel()
        at = np.flatnonzero((counts.items >= fewest) & (counts.items <= most) & (counts.items < parents))
        add((c, d), at, at // max(across, 1), at % max(across, 1), counts)
    if not columns:
        return _Slices(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64), ErrorCounts(np.empty(0), np.empty(0)))
    return _Slices(np.concatenate(columns), np.concatenate(codes), ErrorCounts(np.concatenate(errors), np.concatenate(items)))


def _rest(search: _Search, counts: ErrorCounts) -> ErrorCounts:
    return ErrorCounts(search.wrong_J.sum() - counts.errors, len(search.wrong_J) - counts.items)


def _against_parents(search: _Search, slices: _Slices) -> Floats:
    """Return the larger p-value of each pair against the remainders of its two values; 0 for a single value."""
    p_values = np.zeros(len(slices.codes_K2))
    for side in (0, 1):
        for c, column in enumerate(search.columns):
            at = np.flatnonzero((slices.columns_K2[:, side] == c) & (slices.columns_K2[:, 1] >= 0))
            code, own = slices.codes_K2[at, side], ErrorCounts(slices.counts.errors[at], slices.counts.items[at])
            left = ErrorCounts(column.counts.errors[code] - own.errors, column.counts.items[code] - own.items)
            p_values[at] = np.maximum(p_values[at], fisher_p_values(own, left))
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

    def by_unit(mask_J: NDArray[np.bool_]) -> ErrorCounts:
        return _counted(units_J[mask_J], search.wrong_J[mask_J], units)

    own_J = _meets(search, slices, place)[search.rows_J]
    own = by_unit(own_J)
    pair = bool(slices.columns_K2[place, 1] >= 0)
    supersets_J = [np.ones_like(own_J), *(_meets(search, slices, place, side)[search.rows_J] for side in range(2 * pair))]
    p_values = []
    for superset_J in supersets_J:
        left = by_unit(superset_J & ~own_J)
        effect, other = design_effect(*own), design_effect(*left)
        # Rounded in favour of the slice: it looks better, and the others worse, than they are.
        some = ErrorCounts(np.floor([own.errors.sum() / effect]), np.ceil([own.items.sum() / effect]))
        items = np.floor([left.items.sum() / other])
        others = ErrorCounts(np.minimum(np.ceil([left.errors.sum() / other]), items), items)
        p_values.append(float(fisher_p_values(some, others)[0]) if some.items[0] and others.items[0] else 1.0)
    return max(p_values)


def _upper_ends(search: _Search, counts: ErrorCounts, confidence: float) -> Floats:
    """Return the end nearest 0 of a normal interval of each difference, with a success and a failure added to each side."""
    rest = _rest(search, counts)
    shares = [(side.errors + 1) / (side.items + 2) for side in (counts, rest)]
    spread = sum(share * (1 - share) / (side.items + 2) for share, side in zip(shares, (counts, rest), strict=True))
    return np.asarray(shares[1] - shares[0] + NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(spread))


def _intervals(
    right_N: Floats, masks: list[NDArray[np.bool_]], resampling: "Resampling", confidence: float
) -> list[Interval | None]:
    """Return the interval of the difference between each slice's share and that of the rest."""
    if not masks or not resampling.replicates:
        return [None] * len(masks)
    from vigil_evaluation.stats.bootstrap import replicate_ratio

    judged_N1 = (~np.isnan(right_N)).astype(np.float64)[:, None]
    right_N1 = np.nan_to_num(right_N)[:, None]
    estimates, samples = replicate_ratio(right_N1, judged_N1, [mask.astype(np.int32) for mask in masks], resampling)
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
    own = ErrorCounts(slices.counts.errors[place], slices.counts.items[place])
    rest = _rest(search, own)
    all_right, others = 1 - float(own.errors / own.items), 1 - float(rest.errors / rest.items)
    conditions = [
        Condition(search.columns[c].name, search.columns[c].values[code])
        for c, code in zip(slices.columns_K2[place].tolist(), slices.codes_K2[place].tolist(), strict=True)
        if c >= 0
    ]
    return FoundSlice(
        conditions=conditions,
        items=int(mask_N.sum()),
        judged=int(own.items),
        all_right=all_right,
        rest=others,
        difference=all_right - others,
        interval=between,
        p_value=p_value,
        adjusted_p=adjusted_p,
    )
