"""Known sums over all traffic of a period: numbers of decisions, exposure and predicted positives, by slice, action and label.

One pass over the traffic, day by day; memory depends on the number of slices, not of rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.progress import ProgressCallback
from vigil_evaluation.metrics import Floats
from vigil_monitoring.estimates.slicing import Codes, SliceCodes, slice_values, source_column
from vigil_monitoring.traffic.reader import Traffic, decisive

ALL = ""
"""Name of the grouping whose only slice is all traffic."""

WEIGHTS = ("items", "exposure")


class Sums:
    """Sums of the slices of one grouping; W weights (items, exposure), S slices, A actions, L labels.

    Attributes:
        codes: numbers of the slices.
        by_action: ``[W, S, A, 1 + L + 1]``: mass; mass times the probability of each label; mass times the highest probability.
        by_reason: ``[W, S, A, 1 + L, 2]`` by decisive label (0 for none): mass; mass times the decisive label's probability.
        reviews: ``[S]``, decisions that were sent to reviewers.
    """

    def __init__(self, name: str, labels: int) -> None:
        self.codes = SliceCodes(name)
        self.by_action: Floats = np.zeros((2, 0, 0, labels + 2))
        self.by_reason: Floats = np.zeros((2, 0, 0, labels + 1, 2))
        self.reviews: Floats = np.zeros(0)

    def add(self, rows: "Rows", slice_N: Codes, actions: int) -> None:
        """Add rows of the traffic.

        Args:
            rows: the rows.
            slice_N: slice of each.
            actions: number of actions so far.
        """
        slices, reasons = len(self.codes), self.by_reason.shape[3]
        self.make_room(slices, actions)
        self.reviews = np.pad(self.reviews, (0, slices - len(self.reviews)))
        self.reviews += np.bincount(slice_N, rows.reviewed_N, slices)
        cell_N = slice_N * actions + rows.action_N
        for w, mass_N in enumerate(rows.masses_WN):
            self.by_action[w, :, :, 0] += np.bincount(cell_N, mass_N, slices * actions).reshape(slices, actions)
            for k, probability_N in enumerate(rows.probability_KN, 1):
                self.by_action[w, :, :, k] += np.bincount(cell_N, mass_N * probability_N, slices * actions).reshape(
                    slices, actions
                )
            if rows.decisive_N is not None:
                fine_N, shape = cell_N * reasons + rows.decisive_N, (slices, actions, reasons)
                for k, of_N in enumerate((mass_N, mass_N * rows.own_probability_N)):
                    self.by_reason[w, ..., k] += np.bincount(fine_N, of_N, slices * actions * reasons).reshape(shape)

    def make_room(self, slices: int, actions: int) -> None:
        """Extend the sums by zeros for more slices and actions."""
        self.by_action, self.by_reason = (_grown(of, slices, actions) for of in (self.by_action, self.by_reason))


class Rows(NamedTuple):
    """Columns of rows as numbers; the same for traffic and for a queue.

    Attributes:
        masses_WN: 1, and the exposure (0 where it is unknown), ``[2, N]``.
        probability_KN: probability of each label, and the highest, ``[L + 1, N]``; 0 where a row has none.
        action_N: number of the action.
        reviewed_N: 1 for a decision that was sent to reviewers.
        decisive_N: 1 + number of the decisive label, 0 for none; ``None`` if it was not read.
    """

    masses_WN: Floats
    probability_KN: Floats
    action_N: Codes
    reviewed_N: Floats
    decisive_N: Codes | None

    @property
    def own_probability_N(self) -> Floats:
        """Probability of each row's decisive label; 0 without one."""
        assert self.decisive_N is not None
        zero_KN: Floats = np.concatenate([np.zeros((1, len(self.decisive_N))), self.probability_KN])
        return zero_KN[self.decisive_N, np.arange(len(self.decisive_N))]


class Population(NamedTuple):
    """Sums over the traffic of a period.

    Attributes:
        labels: labels that are summed.
        weights: ``items``, and ``exposure`` where the traffic has any.
        rows: number of decisions.
        actions: actions; ``(none)`` for decisions without one.
        policies: names and versions of the policies.
        sums: of each grouping, by its name; ``""`` is all traffic.
        without_exposure: decisions whose exposure is unknown.
    """

    labels: tuple[str, ...]
    weights: tuple[str, ...]
    rows: int
    actions: SliceCodes
    policies: SliceCodes
    sums: dict[str, Sums]
    without_exposure: int


def sum_traffic(
    traffic: Traffic,
    labels: Sequence[str],
    by: Sequence[str] = (),
    *,
    reasons: bool = False,
    progress: ProgressCallback | None = None,
) -> Population:
    """Sum the traffic by slice, action and decisive label.

    Args:
        traffic: the population.
        labels: labels to sum; one that the traffic lacks gets predictions of 0.
        by: names of slices, from :func:`.slicing.check_slices`.
        reasons: whether to read the decisive labels.
        progress: called with ``summing``, the rows done and their number.
    """
    actions, policies = SliceCodes("action"), SliceCodes("policy")
    sums = {name: Sums(name, len(labels)) for name in (ALL, *by)}
    rows = without = 0
    with_reasons = reasons or "decisive" in by
    known = {f"probability.{label}" for label in labels if label in traffic.labels}
    needed = {"action", "review", "policy", "exposure", *known, *map(source_column, by), *(("reasons",) if with_reasons else ())}
    for batch in traffic.batches(sorted(needed)):
        without += batch.column("exposure").null_count
        decisive_column = decisive(batch.column("reasons")) if with_reasons else None
        found = rows_of(batch, labels, actions, decisive_column)
        policies.encode(slice_values("policy", batch.column("policy")))
        for name, of in sums.items():
            if name == ALL:
                slice_N = of.codes.encode(pa.repeat("all", batch.num_rows))
            else:
                column = decisive_column if name == "decisive" else batch.column(source_column(name))
                slice_N = of.codes.encode(slice_values(name, column))
            of.add(found, slice_N, len(actions))
        rows += batch.num_rows
        if progress is not None:
            progress("summing", rows, traffic.rows)
    weights = WEIGHTS if without < rows else WEIGHTS[:1]
    return Population(tuple(labels), weights, rows, actions, policies, sums, without)


def rows_of(
    table: pa.RecordBatch | pa.Table, labels: Sequence[str], actions: SliceCodes, decisive_column: pa.Array | None
) -> Rows:
    """Return rows of traffic or of a queue as numbers.

    Args:
        table: columns ``exposure``, ``action``, ``review`` and ``probability.LABEL`` where they exist.
        labels: labels.
        actions: numbers of the actions; new ones get the next.
        decisive_column: decisive label of each row; ``None`` if it is not needed.
    """
    count, names = table.num_rows, set(table.schema.names)
    probability_KN = np.zeros((len(labels) + 1, count))
    for row, label in enumerate(labels):
        if f"probability.{label}" in names:
            probability_KN[row] = np.nan_to_num(_numbers(table, f"probability.{label}"))
    probability_KN[-1] = probability_KN[:-1].max(axis=0, initial=0.0)
    decisive_N = None
    if decisive_column is not None:
        place = pc.index_in(decisive_column, pa.array(labels, pa.string()), skip_nulls=True)
        decisive_N = np.asarray(pc.fill_null(place, -1).to_numpy(zero_copy_only=False), np.int64) + 1
    return Rows(
        np.stack([np.ones(count), np.nan_to_num(_numbers(table, "exposure"))]),
        probability_KN,
        actions.encode(slice_values("action", table.column("action"))),
        np.nan_to_num(_numbers(table, "review")),
        decisive_N,
    )


def _numbers(table: pa.RecordBatch | pa.Table, name: str) -> Floats:
    """Return a column as float64, NaN for null."""
    column = table.column(name)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found: Floats = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found


def _grown(of: Floats, slices: int, actions: int) -> Floats:
    """Return an array with room for more slices and actions."""
    return np.pad(of, [(0, 0), (0, slices - of.shape[1]), (0, actions - of.shape[2]), *[(0, 0)] * (of.ndim - 3)])
