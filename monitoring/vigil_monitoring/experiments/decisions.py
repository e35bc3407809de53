"""Decisions of the traffic as arrays: arm, cluster of time, group of authors, and what was done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_monitoring.experiments.assignment import MICROSECONDS_PER_MINUTE, switchback_blocks, unit_places
from vigil_monitoring.experiments.cluster_sums import GROUPS
from vigil_monitoring.experiments.spec import ColumnSplit, Experiment, HashSplit, MetricSpec, Shadow, Switchback

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

CHAMPION, CHALLENGER, NEITHER = 0, 1, -1
NOT_ACTIONS = ("allow", "review")
"""Actions of a policy that do nothing to an item."""

_COLUMNS = ("id", "time", "author", "labels", "action", "review", "exposure", "bundle", "policy", "error")
_MICROSECONDS_PER_DAY = 1440 * MICROSECONDS_PER_MINUTE


@dataclass(frozen=True, slots=True)
class Clusters:
    """Clusters of time of an experiment, and the looks.

    Attributes:
        first_day: first day of the period.
        per_day: clusters of time in a day: 1, or the pairs of blocks of a switchback.
        times: number of clusters of time.
        groups: number of groups of authors; 1 where only time is a cluster.
        last_time_K: last cluster of time of each look, which is the end of a day.
        days: day of each look, such as ``2026-11-01``.
    """

    first_day: date
    per_day: int
    times: int
    groups: int
    last_time_K: Integers
    days: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """N decisions.

    Attributes:
        rows: the rows that they come from.
        arm_N: :data:`CHAMPION`, :data:`CHALLENGER` or :data:`NEITHER`, int64.
        time_N: cluster of time.
        group_N: group of the author (of the unit that was assigned).
        place_N: place of the unit in [0, 1), for a hash or column split; NaN for rows without a unit.
    """

    rows: pa.RecordBatch
    arm_N: Integers
    time_N: Integers
    group_N: Integers
    place_N: Floats | None

    def acted(self, metric: MetricSpec) -> Booleans:
        """Return which decisions are positive for a metric: its action, its label, or any action."""
        action, decided = self.rows["action"], self.rows["labels"]
        if metric.action is not None:
            return _true(pc.equal(action, metric.action))
        if metric.label is not None:
            return _contains(decided, metric.label)
        return self._done(action, _true(pc.invert(pc.is_in(action, pa.array(NOT_ACTIONS)))))

    def up(self, takes_down: Sequence[str]) -> Booleans:
        """Return which items stay up; without a policy, those for which no label is decided."""
        return ~self._done(self.rows["action"], _true(pc.is_in(self.rows["action"], pa.array(takes_down, pa.string()))))

    def reviewed(self) -> Booleans:
        """Return which decisions go to human review."""
        return _true(self.rows["review"])

    def weights(self, metric: MetricSpec) -> Floats:
        """Return 1 for each decision, or its exposure (0 where it is unknown)."""
        if metric.weight == "items":
            return np.ones(self.rows.num_rows)
        return np.asarray(pc.fill_null(self.rows["exposure"], 0.0).to_numpy(zero_copy_only=False), np.float64)

    def _done(self, action: pa.Array, by_action_N: Booleans) -> Booleans:
        """Return what the policy did; without one, whether any label is decided."""
        flagged_N = pc.fill_null(pc.list_value_length(self.rows["labels"]), 0).to_numpy(zero_copy_only=False) > 0
        return np.where(action.is_null().to_numpy(zero_copy_only=False), flagged_N, by_action_N)


def needed_columns(spec: Experiment, further: Sequence[str]) -> list[str]:
    """Return the columns of the traffic that an experiment reads.

    Args:
        spec: the experiment.
        further: columns of the guardrails.
    """
    unit = [spec.split.unit] if isinstance(spec.split, HashSplit | ColumnSplit) else []
    column = [spec.split.column] if isinstance(spec.split, ColumnSplit) else []
    return list(dict.fromkeys([*_COLUMNS, *unit, *column, *further]))


def clusters_of(spec: Experiment, days: Sequence[date]) -> Clusters:
    """Return the clusters of time of the days that have decisions."""
    per_day = 1440 // (2 * spec.split.block_minutes) if isinstance(spec.split, Switchback) else 1
    numbers = [(day - days[0]).days for day in days]
    return Clusters(
        first_day=days[0],
        per_day=per_day,
        times=(numbers[-1] + 1) * per_day,
        # The blocks are what is assigned in a switchback; every author meets both arms.
        groups=1 if isinstance(spec.split, Switchback) else GROUPS,
        last_time_K=(np.array(numbers) + 1) * per_day - 1,
        days=tuple(day.isoformat() for day in days),
    )


def read_batch(
    batch: pa.RecordBatch, spec: Experiment, clusters: Clusters, shadow: bool, bundles: Mapping[int, str | None]
) -> Decisions:
    """Return a batch of traffic as decisions; those that belong to no arm are :data:`NEITHER`.

    Args:
        batch: with the columns of :func:`needed_columns`.
        spec: the experiment.
        clusters: the clusters of time.
        shadow: whether the batch is of the shadow's decisions.
        bundles: beginning of the hash of each arm's bundle; other bundles' decisions belong to no arm.
    """
    micros_N = batch["time"].cast(pa.int64()).to_numpy(zero_copy_only=False)
    origin = int(datetime(clusters.first_day.year, clusters.first_day.month, clusters.first_day.day, tzinfo=UTC).timestamp())
    time_N = (micros_N - origin * 1_000_000) * clusters.per_day // _MICROSECONDS_PER_DAY
    split, place_N = spec.split, None
    unit = batch[split.unit if isinstance(split, HashSplit | ColumnSplit) else "author"].cast(pa.string())
    if isinstance(split, Shadow):
        arm_N = np.full(len(time_N), CHALLENGER if shadow else CHAMPION)
    elif isinstance(split, Switchback):
        blocks = switchback_blocks(split.salt, split.block_minutes, micros_N)
        arm_N = np.where(blocks.minutes_N < split.washout_minutes, NEITHER, np.where(blocks.challenger_N, CHALLENGER, CHAMPION))
    elif isinstance(split, HashSplit):
        place_N = unit_places(split.salt, unit)
        arm_N = np.where(np.isnan(place_N), NEITHER, np.where(place_N < split.share, CHALLENGER, CHAMPION))
    else:
        place_N = unit_places("", unit)
        value = batch[split.column].cast(pa.string())
        arm_N = np.where(
            _true(pc.equal(value, split.challenger)),
            CHALLENGER,
            np.where(_true(pc.equal(value, split.champion)), CHAMPION, NEITHER),
        )
    for arm, start in bundles.items():
        if start is not None:
            arm_N = np.where((arm_N == arm) & ~_true(pc.starts_with(batch["bundle"], start)), NEITHER, arm_N)
    arm_N = np.where(batch["error"].is_valid().to_numpy(zero_copy_only=False), NEITHER, arm_N)
    return Decisions(batch, arm_N.astype(np.int64), time_N.astype(np.int64), _groups(unit, batch["id"], clusters.groups), place_N)


def _groups(unit: pa.Array, ids: pa.Array, groups: int) -> Integers:
    """Return the group of each unit; a row without a unit is a unit of its own."""
    if groups == 1:
        return np.zeros(len(unit), np.int64)
    encoded = pc.coalesce(unit, ids).dictionary_encode()
    codes = np.array([crc32(name.encode()) % groups for name in encoded.dictionary.to_pylist()], np.int64)
    return np.asarray(codes[encoded.indices.to_numpy(zero_copy_only=False)])


def _contains(lists: pa.Array, value: str) -> Booleans:
    """Return which lists contain a value; null is an empty list."""
    found = np.zeros(len(lists), np.bool_)
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    found[rows[_true(pc.equal(pc.list_flatten(lists), value))]] = True
    return found


def _true(values: pa.Array) -> Booleans:
    """Return a boolean array with null as false."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), np.bool_)
