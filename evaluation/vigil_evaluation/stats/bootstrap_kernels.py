"""Inner loops of the bootstrap, compiled by numba. Each processes LANES replicates at once and releases Python's lock.

The innermost loops run over the lanes, which are adjacent in memory, so that one instruction processes 8 to 64 of them. A weight
is the number of times that a replicate draws a unit. numba takes a second to import: import this module only within functions.
"""

from collections.abc import Callable
from math import erf, exp, pi, sqrt
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

LANES = 64
"""Number of replicates processed at once: as many weights as fit one cache line. Replicates do not depend on it."""

POSITIVE, LAST = 1, 2
"""Flags of a ranked row: its target is positive; it is the last row with its score."""

HALF_LANES = 32
"""Consecutive replicates that use the same half of their random numbers; LANES is a multiple of twice as many."""

PREFETCH_ROWS = 16
"""Number of rows that are prefetched, which makes the pass three times as fast on an AMD EPYC."""

Function = TypeVar("Function", bound=Callable[..., Any])
Weights = NDArray[np.uint8]


class LabelRows(NamedTuple):
    """Rows of a label that are summed.

    Attributes:
        rows_N: row numbers in the table.
        units_N: unit of each row.
        groups_TC: group of each row of the table in each grouping; -1 for none.
        kinds_NX: kind of each row, ``[N, 1]``, or by grouping, ``[N, C]``.
        values_NV: values that are summed in addition to the weights; V may be 0.
    """

    rows_N: NDArray[np.int32]
    units_N: NDArray[np.int32]
    groups_TC: NDArray[np.int32]
    kinds_NX: NDArray[np.uint8]
    values_NV: NDArray[np.float64]


class LabelSums(NamedTuple):
    """Sums of :func:`add` by group and kind.

    Attributes:
        counts_GKB: sums of the weights.
        sums_GKVB: weighted sums of the values.
    """

    counts_GKB: NDArray[np.int32]
    sums_GKVB: NDArray[np.float64]


class RankedRows(NamedTuple):
    """Rows of a label by falling score.

    Attributes:
        rows_N: row numbers in the table.
        units_N: unit of each row.
        marks_N: flags POSITIVE and LAST of each row.
        groups_TC: group of each row of the table in each grouping; -1 for none.
        masses_N: number of items that each row represents, at least 1; ``None`` for 1 each.
    """

    rows_N: NDArray[np.int32]
    units_N: NDArray[np.int32]
    marks_N: NDArray[np.uint8]
    groups_TC: NDArray[np.int32]
    masses_N: NDArray[np.float64] | None


class RankTally(NamedTuple):
    """Parameters and running sums of the ranking metrics, by group and replicate.

    Attributes:
        wanted: whether each of the five metrics is computed.
        precision: precision of ``recall_at_precision``.
        rate: false-positive rate of ``partial_auroc`` and ``recall_at_fpr``.
        hits_GB: positives flagged so far; at the end, all positives.
        misses_GB: negatives flagged so far; at the end, all negatives.
        negatives_GB: number of negatives, read only for the metrics at a false-positive rate.
        found_MGB: average precision times positives; twice the area over the ROC curve, in pairs; area under it up to the rate,
            in pairs; positives flagged at the rate; positives flagged at the precision.

    Positives and negatives are int32 counts, or float64 sums if rows have masses.
    """

    wanted: NDArray[np.bool_]
    precision: float
    rate: float
    hits_GB: NDArray[np.int32] | NDArray[np.float64]
    misses_GB: NDArray[np.int32] | NDArray[np.float64]
    negatives_GB: NDArray[np.int32] | NDArray[np.float64]
    found_MGB: NDArray[np.float64]


def compiled(function: Function) -> Function:
    """Compile at the first call, and cache the machine code on disk where a folder is writable."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**options)(function)  # type: ignore[no-any-return]


def _poisson_steps() -> NDArray[np.uint32]:
    """Return the 32-bit numbers from which on a Poisson(1) variable exceeds 0, 1, 2, …, by inversion of its CDF."""
    terms = exp(-1.0) / np.cumprod(np.maximum(np.arange(13), 1), dtype=np.float64)
    return np.asarray(np.floor(np.cumsum(terms)[:-1] * 2.0**32), np.uint32)


POISSON_STEPS = _poisson_steps()
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_: Any, array: Any, row: Any) -> Any:
    """Prefetch a row of a matrix: rows in the order of scores are scattered in memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, matrix.strides)[0]
        offset = builder.mul(stride, context.cast(builder, arguments[1], signature.args[1], types.intp))
        start = builder.bitcast(matrix.data, ir.IntType(8).as_pointer())
        place, i32 = builder.gep(start, [offset]), ir.IntType(32)
        form = ir.FunctionType(ir.VoidType(), [place.type, i32, i32, i32])
        builder.call(builder.module.declare_intrinsic("llvm.prefetch", [place.type], form), [place, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.none(array, row), generate


def drawn(weight: Any, masses_N: Any, row: Any) -> Any:
    """Return the weight of a row in a replicate: how often it is drawn, times the number of items that it represents."""
    return weight if masses_N is None else weight * masses_N[row]


@overload(drawn)  # type: ignore[untyped-decorator]
def _drawn(weight: Any, masses_N: Any, row: Any) -> Any:  # noqa: ARG001  (numba calls it with types)
    """Choose by type at compile time, so that rows without masses cost nothing."""

    def once(weight: Any, masses_N: Any, row: Any) -> Any:  # noqa: ARG001
        return np.int32(weight)

    def often(weight: Any, masses_N: Any, row: Any) -> Any:
        return np.float64(weight) * masses_N[row]

    return once if isinstance(masses_N, types.NoneType) else often


@compiled
def _mixed(x: Any) -> Any:
    """Apply the output function of SplitMix64 (Steele, Lea and Flood 2014): each input bit flips half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def draw(seed: int, block: int, weights_UB: Weights) -> None:
    """Fill in the Poisson(1) weights of the LANES replicates of a block: a pure function of seed, unit and replicate.

    Args:
        seed: of the bootstrap.
        block: number of the block of LANES replicates.
        weights_UB: written, ``[units, LANES]``.
    """
    start = _mixed(np.uint64(seed) + _GOLDEN)
    numbers = np.empty(LANES, np.uint32)
    for unit in range(weights_UB.shape[0]):
        # Each unit has its own stream of SplitMix64; each output serves two replicates, one with each half.
        state = _mixed(start ^ _mixed(np.uint64(unit) + _GOLDEN))
        for run in range(LANES // (2 * HALF_LANES)):
            for lane in range(HALF_LANES):
                nth = np.uint64((block * (LANES // (2 * HALF_LANES)) + run) * HALF_LANES + lane + 1)
                bits = _mixed(state + nth * _GOLDEN)
                numbers[run * 2 * HALF_LANES + lane] = np.uint32(bits & np.uint64(0xFFFFFFFF))
                numbers[run * 2 * HALF_LANES + HALF_LANES + lane] = np.uint32(bits >> np.uint64(32))
        for lane in range(LANES):
            weight = np.uint8(0)
            for step in POISSON_STEPS:
                weight += np.uint8(numbers[lane] >= step)
            weights_UB[unit, lane] = weight


@compiled
def add(weights_UB: Weights, rows: LabelRows, sums: LabelSums) -> None:
    """Add each row's weights, and its weighted values, to the cells of its groups.

    Args:
        weights_UB: see :func:`draw`.
        rows: rows to add.
        sums: modified in place.
    """
    counts_GKB, sums_GKVB = sums
    rows_N, units_N, groups_TC, kinds_NX, values_NV = rows
    by_grouping = kinds_NX.shape[1] > 1
    product = np.empty(LANES)
    for i in range(len(rows_N)):
        row, unit = np.uintp(rows_N[i]), np.uintp(units_N[i])
        for c in range(groups_TC.shape[1]):
            if groups_TC[row, c] >= 0:
                group, kind = np.uintp(groups_TC[row, c]), np.uintp(kinds_NX[i, c if by_grouping else 0])
                for lane in range(LANES):
                    counts_GKB[group, kind, lane] += np.int32(weights_UB[unit, lane])
        for v in range(values_NV.shape[1]):
            value = values_NV[i, v]
            if value == 0:
                continue
            for lane in range(LANES):
                product[lane] = value * weights_UB[unit, lane]
            for c in range(groups_TC.shape[1]):
                if groups_TC[row, c] >= 0:
                    group, kind = np.uintp(groups_TC[row, c]), np.uintp(kinds_NX[i, c if by_grouping else 0])
                    for lane in range(LANES):
                        sums_GKVB[group, kind, v, lane] += product[lane]


@compiled
def rank(weights_UB: Weights, ranking: RankedRows, tally: RankTally) -> None:
    """Compute all ranking metrics of all groups in one pass down the ranked rows of a label.

    Args:
        weights_UB: see :func:`draw`.
        ranking: the rows.
        tally: zeros; modified in place.
    """
    rows_N, units_N, marks_N, groups_TC, masses_N = ranking
    one, fresh = _blank(tally, 1), _blank(tally, tally.hits_GB.shape[0])
    start = 0
    while start < len(rows_N):
        end, positives = start, 0
        while end == start or not marks_N[end - 1] & LAST:
            positives += marks_N[end] & POSITIVE
            ahead = min(end + PREFETCH_ROWS, len(rows_N) - 1)
            prefetch(weights_UB, units_N[ahead])
            prefetch(groups_TC, rows_N[ahead])
            end += 1
        if not positives:  # the order among negatives does not matter
            _add_tied(weights_UB, ranking, start, end, tally)
        elif end == start + 1:
            row, unit = np.uintp(rows_N[start]), np.uintp(units_N[start])
            for lane in range(LANES):
                one.hits_GB[0, lane] = drawn(weights_UB[unit, lane], masses_N, start)
            for c in range(groups_TC.shape[1]):
                if groups_TC[row, c] >= 0:
                    _join(one, np.uintp(0), np.uintp(groups_TC[row, c]), tally)
        else:
            _add_tied(weights_UB, ranking, start, end, fresh)
            _join_tied(ranking, start, end, fresh, tally)
        start = end


@compiled
def _blank(tally: RankTally, groups: int) -> RankTally:
    """Return an empty tally with the same parameters."""
    kind = tally.hits_GB.dtype
    hits_GB, misses_GB = np.zeros((groups, LANES), kind), np.zeros((groups, LANES), kind)
    return RankTally(tally.wanted, tally.precision, tally.rate, hits_GB, misses_GB, tally.negatives_GB, tally.found_MGB)


@compiled
def _add_tied(weights_UB: Weights, ranking: RankedRows, start: int, end: int, tally: RankTally) -> None:
    """Count rows of one score, without updating the metrics."""
    rows_N, units_N, marks_N, groups_TC, masses_N = ranking
    hits_GB, misses_GB = tally.hits_GB, tally.misses_GB
    for i in range(start, end):
        row, unit = np.uintp(rows_N[i]), np.uintp(units_N[i])
        for c in range(groups_TC.shape[1]):
            if groups_TC[row, c] >= 0:
                group = np.uintp(groups_TC[row, c])
                if marks_N[i] & POSITIVE:
                    for lane in range(LANES):
                        hits_GB[group, lane] += drawn(weights_UB[unit, lane], masses_N, i)
                else:
                    for lane in range(LANES):
                        misses_GB[group, lane] += drawn(weights_UB[unit, lane], masses_N, i)


@compiled
def _join_tied(ranking: RankedRows, start: int, end: int, fresh: RankTally, tally: RankTally) -> None:
    """Add the rows of one score to those flagged before, in each group that has some, and reset their counts."""
    rows_N, groups_TC = ranking.rows_N, ranking.groups_TC
    joined = np.zeros(fresh.hits_GB.shape[0], np.bool_)
    for i in range(start, end):
        for c in range(groups_TC.shape[1]):
            code = groups_TC[rows_N[i], c]
            if code >= 0 and not joined[code]:
                joined[code] = True
                _join(fresh, np.uintp(code), np.uintp(code), tally)
                fresh.hits_GB[code] = 0
                fresh.misses_GB[code] = 0


@compiled
def _join(fresh: RankTally, at: Any, group: Any, tally: RankTally) -> None:
    """Add the positives ``t`` and negatives ``f`` of one score to those flagged before.

    Only positives change these metrics: if ``t`` positives join the hits at a score at which the flagged negatives rise from
    ``before`` to ``after``, they add ``t * hits / (hits + after)`` to the average precision and
    ``t * (before + after)`` to twice the area over the ROC curve; up to a false-positive rate, the area under the curve that
    they add is that under a ramp from ``before`` to ``after``.
    """
    wanted, precision, rate, hits_GB, misses_GB, negatives_GB, found_MGB = tally
    t_TB, f_TB = fresh.hits_GB, fresh.misses_GB
    for lane in range(LANES):
        hits_GB[group, lane] += t_TB[at, lane]
        misses_GB[group, lane] += f_TB[at, lane]
    if wanted[0]:
        for lane in range(LANES):
            hits, flagged = np.float64(hits_GB[group, lane]), np.float64(hits_GB[group, lane] + misses_GB[group, lane])
            found_MGB[0, group, lane] += t_TB[at, lane] * (hits / max(flagged, 1.0))
    if wanted[1]:
        for lane in range(LANES):
            found_MGB[1, group, lane] += np.float64(t_TB[at, lane]) * np.float64(2 * misses_GB[group, lane] - f_TB[at, lane])
    if wanted[2]:
        for lane in range(LANES):
            f = np.float64(f_TB[at, lane])
            left = rate * negatives_GB[group, lane] - (misses_GB[group, lane] - f)
            ramp = min(max(left, 0.0), f)
            width = ramp * ramp / (2.0 * max(f, 1.0)) + max(left - f, 0.0)
            found_MGB[2, group, lane] += t_TB[at, lane] * width
    if wanted[3]:
        for lane in range(LANES):
            allowed = misses_GB[group, lane] / max(np.float64(negatives_GB[group, lane]), 1.0) <= rate
            found_MGB[3, group, lane] = hits_GB[group, lane] if allowed else found_MGB[3, group, lane]
    if wanted[4]:
        for lane in range(LANES):
            hits, flagged = np.float64(hits_GB[group, lane]), np.float64(hits_GB[group, lane] + misses_GB[group, lane])
            precise = hits / max(flagged, 1.0) >= precision
            found_MGB[4, group, lane] = hits if precise else found_MGB[4, group, lane]


@compiled
def calibration_errors(sums: LabelSums, centres_GK: Any, errors_GB: Any, distances_GB: Any) -> None:
    """Compute the calibration error as :func:`vigil_evaluation.metrics.calibration_error` does, but without the floor at 0.

    Args:
        sums: by group and bin: weights; target minus probability, and its square.
        centres_GK: centres from which distances are measured.
        errors_GB: written; debiased distance of the means from 0, NaN without known targets.
        distances_GB: written; plain distance of the means from the centres.
    """
    counts_GKB, sums_GKVB = sums
    for group in range(counts_GKB.shape[0]):
        for lane in range(counts_GKB.shape[2]):
            known, error, distance = 0, 0.0, 0.0
            for kind in range(counts_GKB.shape[1]):
                items = counts_GKB[group, kind, lane]
                if items == 0:
                    continue
                known += items
                mean = sums_GKVB[group, kind, 0, lane] / items
                variance = max(sums_GKVB[group, kind, 1, lane] / items - mean * mean, 0.0)
                deviation, size = sqrt(variance / items), abs(mean)
                expected = size
                if deviation > 0:
                    ratio = size / deviation
                    expected = deviation * sqrt(2 / pi) * exp(-ratio * ratio / 2) + size * erf(ratio / sqrt(2.0))
                error += items * (2 * size - expected)
                distance += items * abs(mean - centres_GK[group, kind])
            errors_GB[group, lane] = error / known if known else np.nan
            distances_GB[group, lane] = distance / known if known else np.nan
