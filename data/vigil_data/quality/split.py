"""Splits without leaks: no author, thread or cluster is in more than one, and labels are in proportion.

Example:
    >>> plan = plan_split(Dataset("datasets/posts"), {"train": 0.8, "test": 0.2}, by="random", seed=0)
    >>> store(Dataset("datasets/posts"), plan)
    5
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.history import Change
from vigil_data.dataset.revision import write_columns
from vigil_data.errors import UserError
from vigil_data.quality.near.search import Components
from vigil_data.quality.stratification import assign

By = Literal["random", "time", "author", "source", "thread", "cluster"]
Crossing = Literal["later", "earlier", "drop"]

USUAL_GROUPS = ("author", "thread", "cluster")
"""Columns that no split shares with another by default, if the dataset has them."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Splits of a dataset's rows.

    Attributes:
        names: names of the splits, the kept ones last.
        split_N: each row's place in ``names``; -1 for rows that are left out.
        groups: columns whose values no two splits share.
        largest: number of rows of the largest group.
        left_out: reason to the number of rows left out.
        stratified: labels that are in proportion.
        cuts: where time is cut, ISO 8601, with ``by="time"``.
        shared_by_kept: number of groups that are in more than one kept split, as they were.
    """

    names: Sequence[str]
    split_N: NDArray[np.int64]
    groups: Sequence[str]
    largest: int
    left_out: Mapping[str, int]
    stratified: Sequence[str]
    cuts: Sequence[str] = ()
    shared_by_kept: int = 0


def plan_split(
    dataset: Dataset,
    fractions: Mapping[str, float],
    *,
    by: By = "random",
    groups: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    crossing: Crossing = "later",
    gap: timedelta | None = None,
    seed: int = 0,
) -> Plan:
    """Plan the splits of a dataset.

    Rows that share a value of one of the group columns, directly or through other rows, are one group, and a group is in one
    split.

    Args:
        dataset: the dataset.
        fractions: split to its share of the rows that are not kept; with ``by="time"`` in the order of time. Their sum is 1.
        by: what is split: rows at random; rows at a time; or whole authors, sources, threads or clusters.
        groups: columns of groups, in addition to ``by`` (default: those of :data:`USUAL_GROUPS` that have values).
        labels: labels that are kept in proportion (default: all); none with ``by="time"``.
        keep: splits that stay as they are. Other rows of their groups are left out.
        crossing: with ``by="time"``, the split of groups on both sides of a cut, or that they are left out.
        gap: with ``by="time"``, leave out the rows of this time before each cut.
        seed: of the random choices.

    Raises:
        UserError: for fractions that are not positive or do not add up to 1, and columns that are absent or empty.
    """
    if by != "time" and (gap is not None or crossing != "later"):
        raise UserError("a gap, and a rule for groups that cross a cut, are for splits by time")
    _check_fractions(dataset, fractions, keep)
    columns = _group_columns(dataset, by, groups)
    group_N = grouped(dataset.table(columns), len(dataset))
    split_N = np.full(len(dataset), -1, np.int64)
    left_out: dict[str, int] = {}
    free_N = np.ones(len(dataset), np.bool_)
    shared = 0
    if keep:
        kept_N = np.asarray(pc.index_in(dataset.table(["split"])["split"], pa.array(keep)).fill_null(-1).to_numpy(), np.int64)
        split_N[kept_N >= 0] = kept_N[kept_N >= 0] + len(fractions)
        taken_N = np.isin(group_N, group_N[kept_N >= 0])
        free_N = ~taken_N
        left_out["in one group with a kept item"] = int((taken_N & (kept_N < 0)).sum())
        pairs = np.unique(np.stack([group_N[kept_N >= 0], kept_N[kept_N >= 0]]), axis=1)
        shared = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
    rows = np.flatnonzero(free_N)
    _, number = np.unique(group_N[rows], return_inverse=True)
    stratified = [] if by == "time" else list(dataset.labels if labels is None else labels)
    cuts: list[str] = []
    if by == "time":
        timeline = _Timeline.of(dataset, rows, number)
        split_N[rows], cuts, dropped = timeline.cut(list(fractions.values()), crossing, gap)
        left_out |= dropped
    elif len(rows):
        split_N[rows] = assign(number, _classes(dataset, stratified, rows), list(fractions.values()), seed)
    largest = int(np.bincount(number).max(initial=0))
    reasons = {reason: count for reason, count in left_out.items() if count}
    return Plan([*fractions, *keep], split_N, columns, largest, reasons, stratified, cuts, shared)


def grouped(table: pa.Table, rows: int) -> NDArray[np.int64]:
    """Return the group of each row: rows that share a value of some column, directly or through others; null is no value."""
    components = Components(rows)
    for name in table.column_names:
        codes = table[name].combine_chunks().dictionary_encode().indices
        present = np.flatnonzero(codes.is_valid().to_numpy(zero_copy_only=False))
        values = codes.drop_null().to_numpy()
        _, first, number = np.unique(values, return_index=True, return_inverse=True)
        components.add(present[first][number], present)
    components.merge()
    return components.label_N


def describe(dataset: Dataset, plan: Plan) -> list[dict[str, Any]]:
    """Return for each split its name, number and share of rows, and each label's known and positive targets."""
    described = []
    placed = max(1, int((plan.split_N >= 0).sum()))
    targets = {label: dataset.targets([label])[:, 0] for label in dataset.labels}
    for place, name in enumerate(plan.names):
        within = plan.split_N == place
        described.append(
            {
                "split": name,
                "items": int(within.sum()),
                "share": float(within.sum() / placed),
                "labels": {
                    label: {"known": int((~np.isnan(t[within])).sum()), "positive": int((t[within] >= 0.5).sum())}
                    for label, t in targets.items()
                },
            }
        )
    return described


def store(dataset: Dataset, plan: Plan, reason: str = "") -> int:
    """Write the column ``split`` as a new version, and return the version; rows that are left out have none.

    Raises:
        UserError: if the dataset has changed since it was opened.
    """
    names = np.array([*plan.names, None], dtype=object)
    table = dataset.table(["id"]).append_column("split", pa.array(names[plan.split_N], pa.string()))
    counts = {name: int((plan.split_N == place).sum()) for place, name in enumerate(plan.names)}
    if plan.left_out:
        counts["left out"] = sum(plan.left_out.values())
    return write_columns(dataset.path, table, Change("split", reason, counts), base=dataset.version)


def _check_fractions(dataset: Dataset, fractions: Mapping[str, float], keep: Sequence[str]) -> None:
    if not fractions or abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) <= 0:
        given = ", ".join(f"{name}={share:g}" for name, share in fractions.items())
        raise UserError(f"fractions {given}: must be positive and add up to 1")
    if both := set(fractions) & set(keep):
        raise UserError(f"split {min(both)} is kept as it is, so it has no fraction; give fractions of the other splits")
    if absent := sorted(set(keep) - set(splits := dataset.splits())):
        raise UserError(f"dataset {dataset.path} has no split {absent[0]} to keep; it has {', '.join(filter(None, splits))}")


def _group_columns(dataset: Dataset, by: By, groups: Sequence[str] | None) -> list[str]:
    wanted = [] if by in ("random", "time") else [by]
    given = (
        list(groups)
        if groups is not None
        else [name for name in USUAL_GROUPS if name in dataset.columns and dataset.table([name])[name].null_count < len(dataset)]
    )
    columns = list(dict.fromkeys([*wanted, *given]))
    for name in columns:
        if name not in dataset.columns:
            hint = f"; write it with `vigil data duplicates {dataset.path}`" if name == "cluster" else ""
            raise UserError(f"dataset {dataset.path} has no column {name}{hint}; it has {', '.join(dataset.columns)}")
        if name == by and name != "cluster" and dataset.table([name])[name].null_count == len(dataset):
            raise UserError(f"dataset {dataset.path}: no item has a value of {name}, so it cannot be split by it")
    return columns


def _classes(dataset: Dataset, labels: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each row is a known positive and a known negative of each label, ``[N, 2 L]``."""
    if absent := [label for label in labels if label not in dataset.labels]:
        raise UserError(f"dataset {dataset.path} has no label {absent[0]}; it has {', '.join(dataset.labels)}")
    target_NL = dataset.targets(labels)[rows] if labels else np.empty((len(rows), 0), np.float32)
    return np.concatenate([target_NL >= 0.5, target_NL < 0.5], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Timeline:
    """Times of rows, in microseconds, and of the first and last row of their groups."""

    group_M: NDArray[np.int64]
    time_M: NDArray[np.int64]
    known_M: NDArray[np.bool_]
    first_G: NDArray[np.int64]
    last_G: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, rows: NDArray[np.int64], group_M: NDArray[np.int64]) -> "_Timeline":
        stored = dataset.table(["created_at"])["created_at"].combine_chunks().take(pa.array(rows))
        known_M = stored.is_valid().to_numpy(zero_copy_only=False)
        if not known_M.any():
            raise UserError(f"dataset {dataset.path}: no item has created_at, so it cannot be split by time")
        time_M = np.asarray(stored.cast(pa.int64()).fill_null(0).to_numpy(), np.int64)
        groups = int(group_M.max()) + 1
        last_G, first_G = np.full(groups, _NEVER.min), np.full(groups, _NEVER.max)
        np.maximum.at(last_G, group_M[known_M], time_M[known_M])
        np.minimum.at(first_G, group_M[known_M], time_M[known_M])
        return cls(group_M, time_M, known_M, first_G, last_G)

    def cut(
        self, fractions: Sequence[float], crossing: Crossing, gap: timedelta | None
    ) -> tuple[NDArray[np.int64], list[str], dict[str, int]]:
        """Return the split of each row, the cuts, and reason to the number of rows left out.

        A cut is the time of the first row of the next split. A group that crosses one goes by its last row (later) or its first.
        """
        dated_M = (self.last_G >= self.first_G)[self.group_M]
        key_M = {
            "later": self.last_G[self.group_M],
            "earlier": self.first_G[self.group_M],
            "drop": np.where(self.known_M, self.time_M, self.last_G[self.group_M]),
        }[crossing]
        ordered = np.sort(key_M[dated_M])
        places = np.minimum(np.round(np.cumsum(fractions)[:-1] * len(ordered)).astype(np.int64), len(ordered) - 1)
        cut_C = ordered[places]
        split_M = np.where(dated_M, np.searchsorted(cut_C, key_M, side="right"), -1)
        dropped = {"no created_at": int((~dated_M).sum())}
        if crossing == "drop":
            first, last = (np.searchsorted(cut_C, of_G, "right") for of_G in (self.first_G, self.last_G))
            crosses_M = dated_M & (first != last)[self.group_M]
            split_M[crosses_M] = -1
            dropped["in a group that crosses a cut"] = int(crosses_M.sum())
        if gap is not None:
            in_gap_M = self._before(np.append(cut_C, _NEVER.max)[split_M], gap) & (split_M >= 0)
            split_M[in_gap_M] = -1
            dropped["within the gap before a cut"] = int(in_gap_M.sum())
        cuts = pa.array(cut_C, pa.int64()).cast(pa.timestamp("us", tz="UTC")).to_pylist()
        return split_M, [moment.isoformat() for moment in cuts], dropped

    def _before(self, end_M: NDArray[np.int64], gap: timedelta) -> NDArray[np.bool_]:
        """Whether the group of each row has a row within ``gap`` before that row's end."""
        wait_M = end_M.astype(np.float64) - self.time_M
        near_G = np.zeros(len(self.first_G), np.bool_)
        near_G[self.group_M[self.known_M & (wait_M > 0) & (wait_M <= gap / timedelta(microseconds=1))]] = True
        near_M: NDArray[np.bool_] = near_G[self.group_M]
        return near_M


_NEVER = np.iinfo(np.int64)
