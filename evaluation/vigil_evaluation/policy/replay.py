"""Replay two policies, or two models, on the same traffic: changed decisions, their cost, and the affected groups."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.presence import PRESENCE
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.compiled_policy import CompiledPolicy, DecisionCodes
from vigil_evaluation.policy.constraint_check import decide_traffic, items_with_action
from vigil_evaluation.policy.constraints import ACTIONS, REVIEW
from vigil_evaluation.policy.impact import MAX_COLUMN_VALUES, PolicyImpact, decisive_label_targets, estimate_share, policy_impact
from vigil_evaluation.policy.policy_data import MARKET, Traffic, read_traffic
from vigil_evaluation.stats.intervals import Interval

REVIEW_SUFFIX = " + review"
"""Suffix of an action that is taken while the item is reviewed."""


class ReplaySide(NamedTuple):
    """One side of a replay: its name, policy and predictions."""

    name: str
    policy: CompiledPolicy
    table: pa.Table


@dataclass(frozen=True, slots=True)
class ActionVolume:
    """Items with an action on each side; ``review`` counts all reviewed items.

    Attributes:
        action: the action.
        before: items of the first side.
        after: items of the second side.
        difference: fraction of all items, second minus first.
        interval: interval of that difference over paired items.
    """

    action: str
    before: int
    after: int
    difference: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class ChangeCounts:
    """Counts of changed decisions, by the decisive label of the stricter of the two decisions.

    Attributes:
        label: the label; ``None`` for all.
        stricter_right: stricter with the second side, and the label is true.
        stricter_wrong: stricter with the second side, and the label is false.
        milder_right: milder with the second side, and the label is false.
        milder_wrong: milder with the second side, and the label is true.
        unknown: changed, and the target is unknown.
    """

    label: str | None
    stricter_right: int
    stricter_wrong: int
    milder_right: int
    milder_wrong: int
    unknown: int

    @property
    def wins(self) -> int:
        """Changes for the better."""
        return self.stricter_right + self.milder_right

    @property
    def losses(self) -> int:
        """Changes for the worse."""
        return self.stricter_wrong + self.milder_wrong


@dataclass(frozen=True, slots=True)
class AffectedGroup:
    """Changed decisions on the items with one value of a column.

    Attributes:
        column: the column.
        value: the value; ``None`` for null.
        items: items with the value.
        changed: items that are decided differently.
        share: fraction of items that are decided differently.
        interval: interval of the fraction.
        stricter: items with a stricter decision.
        milder: items with a milder decision.
    """

    column: str
    value: str | None
    items: int
    changed: int
    share: float
    interval: Interval | None
    stricter: int
    milder: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Changes from the first side to the second.

    Attributes:
        first: name of the first side.
        second: name of the second side.
        items: items of both sides.
        left_out: items of one side only.
        changed: items that are decided differently.
        share: fraction of items that are decided differently.
        interval: interval of the fraction.
        stricter: items with a stricter decision.
        milder: items with a milder decision; the other changes are in review only.
        outcomes: names of the rows and columns of ``transitions``, from the mildest to the strictest.
        transitions: items by the first side's outcome (row) and the second's (column).
        volumes: items by action.
        verdicts: changes for better and worse: of all labels, then by label.
        before: impact of the first side's policy.
        after: impact of the second side's policy.
        units: units, such as authors, with a changed item; ``None`` without units.
        affected: changes by presence, market, the policies' columns and the requested ones.
        confidence: confidence of the intervals.
    """

    first: str
    second: str
    items: int
    left_out: int
    changed: int
    share: float
    interval: Interval | None
    stricter: int
    milder: int
    outcomes: list[str]
    transitions: list[list[int]]
    volumes: list[ActionVolume]
    verdicts: list[ChangeCounts]
    before: PolicyImpact
    after: PolicyImpact
    units: int | None
    affected: list[AffectedGroup]
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


class _DecidedTraffic(NamedTuple):
    """One side with its decisions."""

    policy: CompiledPolicy
    traffic: Traffic
    codes: DecisionCodes
    severity_N: NDArray[np.int64]
    outcome_N: NDArray[np.int64]


def replay(
    first: ReplaySide, second: ReplaySide, *, columns: Sequence[str] = (), cluster: str | None = None, confidence: float = 0.95
) -> tuple[Replay, pa.Table]:
    """Decide the same items with two policies or models.

    Args:
        first: current policy and predictions.
        second: candidate policy and predictions; the table may be the same.
        columns: columns to group affected items by, in addition to presence, market and the policies' columns.
        cluster: column of the items that belong together, such as author.
        confidence: confidence of the intervals.

    Returns:
        The changes, and a table of every changed decision: ``id``, action, review and reasons of both sides, whether it became
        stricter or milder, whether the change is correct (null if unknown), and the columns.

    Raises:
        UserError: if the tables have no items in common, or lack labels or requested columns.
    """
    one_table, other_table, left_out = _paired(first.table, second.table)
    if absent := [name for name in (*columns, cluster) if name is not None and name not in one_table.column_names]:
        raise UserError(*(f"{first.name}: column {name} is absent" for name in absent))
    sides = (first.policy, second.policy)
    named = list(dict.fromkeys([*columns, *(s.rule.column for p in sides for s in p.constraints if s.rule.column is not None)]))
    one = _decided(first.policy, one_table, named, cluster)
    other = _decided(second.policy, other_table, named, cluster)
    changed_N = one.outcome_N != other.outcome_N
    stricter_N, milder_N = other.severity_N > one.severity_N, other.severity_N < one.severity_N
    everything_N = np.ones(one.traffic.items, bool)
    share = estimate_share(changed_N, one.traffic, everything_N, confidence, one.traffic.weights.item_N)
    names, transitions = _transitions(one, other)
    right_N, wrong_N, label_N = _judged(one, other, stricter_N, milder_N)
    found = Replay(
        first.name,
        second.name,
        one.traffic.items,
        left_out,
        int(changed_N.sum()),
        share.value or 0.0,
        share.interval,
        int(stricter_N.sum()),
        int(milder_N.sum()),
        names,
        transitions,
        _volumes(one, other, confidence),
        _verdicts(stricter_N, milder_N, right_N, wrong_N, label_N),
        policy_impact(first.policy, one_table, columns=named, cluster=cluster, confidence=confidence),
        policy_impact(second.policy, other_table, columns=named, cluster=cluster, confidence=confidence),
        None if one.traffic.units_N is None else len(np.unique(one.traffic.units_N[changed_N])),
        _affected(one.traffic, changed_N, stricter_N, milder_N, confidence),
        confidence,
    )
    return found, _changes(one, other, one_table, changed_N, (stricter_N, milder_N, right_N, wrong_N))


def _paired(first: pa.Table, second: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """Return the rows of both tables with common ids, in the order of the first."""
    if first is second or first.column("id").equals(second.column("id")):
        return first, second, 0
    places = {name: place for place, name in enumerate(second.column("id").to_pylist())}
    pairs = [(row, places[name]) for row, name in enumerate(first.column("id").to_pylist()) if name in places]
    if not pairs:
        raise UserError("replay: the two sides have no item in common; predict both on the same dataset and split")
    left_out = first.num_rows + second.num_rows - 2 * len(pairs)
    return first.take([row for row, _ in pairs]), second.take([place for _, place in pairs]), left_out


def _decided(policy: CompiledPolicy, table: pa.Table, columns: Sequence[str], cluster: str | None) -> _DecidedTraffic:
    traffic = read_traffic(table, policy.labels, columns, cluster, lenient=True)
    codes = decide_traffic(policy, traffic)
    severity = np.array([ACTIONS.index(action) for action in policy.actions])
    severity_N = severity[codes.actions_N]
    # An action with review is ordered directly after the same action without.
    reviewed_N = codes.review_N & (severity_N != ACTIONS.index(REVIEW))
    return _DecidedTraffic(policy, traffic, codes, severity_N, 2 * severity_N + reviewed_N)


def _named(outcome: int) -> str:
    return ACTIONS[outcome // 2] + (REVIEW_SUFFIX if outcome % 2 else "")


def _transitions(one: _DecidedTraffic, other: _DecidedTraffic) -> tuple[list[str], list[list[int]]]:
    certain = {2 * ACTIONS.index(action) for side in (one, other) for action in side.policy.actions}
    seen = sorted(certain | set(np.unique(np.concatenate([one.outcome_N, other.outcome_N])).tolist()))
    place = np.zeros(2 * len(ACTIONS) + 1, np.int64)
    place[seen] = np.arange(len(seen))
    pairs = place[one.outcome_N] * len(seen) + place[other.outcome_N]
    counts = np.bincount(pairs, minlength=len(seen) ** 2).reshape(len(seen), len(seen))
    return [_named(outcome) for outcome in seen], counts.tolist()


def _volumes(one: _DecidedTraffic, other: _DecidedTraffic, confidence: float) -> list[ActionVolume]:
    found = []
    for action in ACTIONS:
        if action not in one.policy.actions and action not in other.policy.actions:
            continue
        before_N, after_N = (
            items_with_action(side.policy, side.codes, action)
            if action in side.policy.actions
            else np.zeros(side.traffic.items, bool)
            for side in (one, other)
        )
        change_N = after_N.astype(np.float64) - before_N
        found.append(
            ActionVolume(
                action,
                int(before_N.sum()),
                int(after_N.sum()),
                float(np.average(change_N, weights=one.traffic.weights.item_N)),
                mean_interval(change_N, one.traffic.units_N, confidence, one.traffic.weights.item_N),
            )
        )
    return found


def mean_interval(
    values_N: Floats, units_N: NDArray[np.int32] | None, confidence: float, weights_N: Floats | None = None
) -> Interval | None:
    """Return the interval of a mean by its standard error over units; ``None`` for fewer than two units."""
    from scipy.special import ndtri

    units = np.arange(len(values_N)) if units_N is None else units_N
    counts, sizes = np.bincount(units), np.bincount(units, weights_N)
    sums = np.bincount(units, weights=values_N if weights_N is None else values_N * weights_N)
    sums, sizes = sums[counts > 0], sizes[counts > 0]
    if len(sums) < 2:
        return None
    mean = float(sums.sum() / sizes.sum())
    error = np.sqrt(((sums - mean * sizes) ** 2).sum() * len(sums) / (len(sums) - 1)) / sizes.sum()
    reach = float(ndtri((1 + confidence) / 2) * error)
    return Interval(mean - reach, mean + reach)


def _judged(
    one: _DecidedTraffic, other: _DecidedTraffic, stricter_N: NDArray[np.bool_], milder_N: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.str_]]:
    """Return whether each change is correct, whether it is wrong, and the decisive label."""
    names = np.array([*dict.fromkeys([*one.policy.labels, *other.policy.labels]), ""])
    true_N, false_N, label_N = (
        np.zeros(len(stricter_N), bool),
        np.zeros(len(stricter_N), bool),
        np.full(len(stricter_N), "", names.dtype),
    )
    for side, rows_N in ((other, stricter_N), (one, milder_N)):
        positive_N, negative_N, at_N = decisive_label_targets(side.policy, side.traffic, side.codes)
        true_N[rows_N], false_N[rows_N] = positive_N[rows_N], negative_N[rows_N]
        label_N[rows_N] = np.array([*side.policy.labels, ""])[at_N[rows_N]]
    return (stricter_N & true_N) | (milder_N & false_N), (stricter_N & false_N) | (milder_N & true_N), label_N


def _verdicts(
    stricter_N: NDArray[np.bool_],
    milder_N: NDArray[np.bool_],
    right_N: NDArray[np.bool_],
    wrong_N: NDArray[np.bool_],
    label_N: NDArray[np.str_],
) -> list[ChangeCounts]:
    moved_N = stricter_N | milder_N
    found = []
    for label in (None, *np.unique(label_N[moved_N]).tolist()):
        within_N = moved_N if label is None else moved_N & (label_N == label)
        kinds = [way_N & is_N for way_N in (stricter_N, milder_N) for is_N in (right_N, wrong_N)]
        counts = [int((within_N & kind_N).sum()) for kind_N in (*kinds, ~right_N & ~wrong_N)]
        found.append(ChangeCounts(label, *counts))
    return found


def _affected(
    traffic: Traffic, changed_N: NDArray[np.bool_], stricter_N: NDArray[np.bool_], milder_N: NDArray[np.bool_], confidence: float
) -> list[AffectedGroup]:
    found = []
    for name, column in traffic.columns.items():
        for place, value in [*enumerate(column.values[:MAX_COLUMN_VALUES]), (-1, None)]:
            rows_N = column.codes_N == place
            share = estimate_share(changed_N, traffic, rows_N, confidence, traffic.weights.item_N)
            if share.value is not None:
                counts = (int((rows_N & way_N).sum()) for way_N in (stricter_N, milder_N))
                changed = int((rows_N & changed_N).sum())
                found.append(AffectedGroup(name, value, int(rows_N.sum()), changed, share.value, share.interval, *counts))
    return found


def _changes(
    one: _DecidedTraffic,
    other: _DecidedTraffic,
    table: pa.Table,
    changed_N: NDArray[np.bool_],
    ways: tuple[NDArray[np.bool_], ...],
) -> pa.Table:
    rows = np.flatnonzero(changed_N)
    stricter_N, milder_N, right_N, wrong_N = ways
    reason = pa.struct(
        [("label", pa.string()), ("action", pa.string()), ("probability", pa.float64()), ("threshold", pa.float64())]
    )
    columns: dict[str, Any] = {"id": table.column("id").take(rows)}
    for when, side in (("before", one), ("after", other)):
        part = side.traffic.take(rows)
        presence = [value or "" for value in part.columns[PRESENCE].texts()] if PRESENCE in part.columns else [""] * len(rows)
        market = part.columns[MARKET].texts() if MARKET in part.columns else None
        verdicts = side.policy.decide(part.probabilities_NL, part.labels, presence, market)
        columns[when] = pa.array([verdict.action for verdict in verdicts], pa.string())
        columns[f"{when}.review"] = pa.array([verdict.review for verdict in verdicts], pa.bool_())
        columns[f"{when}.reasons"] = pa.array([[asdict(r) for r in verdict.reasons] for verdict in verdicts], pa.list_(reason))
    columns["change"] = pa.array(
        np.where(stricter_N, "stricter", np.where(milder_N, "milder", "review"))[rows].tolist(), pa.string()
    )
    judged = np.where(right_N, 1, np.where(wrong_N, 0, -1))[rows].tolist()
    columns["right"] = pa.array([None if verdict < 0 else bool(verdict) for verdict in judged], pa.bool_())
    kept = [name for name in one.traffic.columns if name not in columns]
    return pa.table(columns | {name: table.column(name).take(rows) for name in kept})
