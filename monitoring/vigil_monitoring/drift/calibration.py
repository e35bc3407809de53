"""Drift of calibration: whether reviewed items are positive as often as their probabilities state.

Only reviews show that the meaning of a probability has changed (concept drift): positives at unchanged scores leave no trace in
unlabelled traffic. Each reviewed item is a bet on ``w (y - f p)``, for its target y, probability p, inclusion probability
``1 / w`` and negligible factor f, and on ``w (p / f - y)``. Items of one author in one window are one bet, since they are right
or wrong together.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.drift.summaries import ALL, UNKNOWN
from vigil_monitoring.drift.windows import SummaryWindow
from vigil_monitoring.queues.queue import PROBABILITY, Queue
from vigil_monitoring.reviews.answers import review_targets
from vigil_monitoring.sequential.e_process import ChangeEvidence, betting_evidence

Floats = NDArray[np.float64]

MIN_REVIEWS = 20
"""Fewest reviewed items of a label in a slice."""


class ReviewedItems(NamedTuple):
    """Reviewed items of a probability sample.

    Attributes:
        ids: their ids.
        days: days of their decisions, ``[N]`` as datetime64[D].
        units: what is right or wrong together, such as authors, ``[N]``.
        labels: names of the columns.
        probabilities_NL: probabilities of the decisions.
        targets_NL: answers in [0, 1]; NaN for unknown.
        weights_N: inverse inclusion probabilities.
        slices: name of a slice to the items that belong to it, ``[N]``.
    """

    ids: Sequence[str]
    days: NDArray[np.datetime64]
    units: NDArray[np.int64]
    labels: tuple[str, ...]
    probabilities_NL: Floats
    targets_NL: Floats
    weights_N: Floats
    slices: dict[str, NDArray[np.bool_]]

    def take(self, places: NDArray[np.int64]) -> "ReviewedItems":
        """Return some of the items."""
        return ReviewedItems(
            [self.ids[n] for n in places],
            self.days[places],
            self.units[places],
            self.labels,
            self.probabilities_NL[places],
            self.targets_NL[places],
            self.weights_N[places],
            {name: member_N[places] for name, member_N in self.slices.items()},
        )


class CalibrationStream(NamedTuple):
    """Tests of one label in one slice.

    Attributes:
        label: the label.
        slice_name: the slice.
        items: places of the reviewed items, ``[K]``.
        window: window of each, ``[K]``.
    """

    label: str
    slice_name: str
    items: NDArray[np.int64]
    window: NDArray[np.int64]


def calibration_evidence(
    reviewed: ReviewedItems, windows: Sequence[SummaryWindow], smallest: float
) -> tuple[list[CalibrationStream], ChangeEvidence]:
    """Return the tested labels and slices, and the evidence of each for more positives than stated, then for fewer, ``[T, 2 K]``.

    Args:
        reviewed: reviewed items; those outside of the windows are ignored.
        windows: the windows.
        smallest: a ratio of positives to the stated number below this factor, or above its inverse, is negligible.
    """
    starts = np.array([window.start for window in windows], "datetime64[D]")
    ends = np.array([window.end for window in windows], "datetime64[D]")
    place_N = np.searchsorted(starts, reviewed.days, side="right") - 1
    inside_N = (place_N >= 0) & (reviewed.days <= ends[np.maximum(place_N, 0)])
    streams, parts = [], []
    for name, member_N in reviewed.slices.items():
        for i, label in enumerate(reviewed.labels):
            known_N = inside_N & member_N & ~np.isnan(reviewed.targets_NL[:, i]) & ~np.isnan(reviewed.probabilities_NL[:, i])
            items = np.flatnonzero(known_N)
            if len(items) < MIN_REVIEWS:
                continue
            items = items[np.argsort(place_N[items], kind="stable")]
            streams.append(CalibrationStream(label, name, items, place_N[items]))
            parts.append(_evidence(reviewed, i, streams[-1], smallest, len(windows)))
    if not streams:
        empty = np.zeros((len(windows), 0))
        return [], ChangeEvidence(empty, empty.astype(np.int64))
    return streams, ChangeEvidence(*(np.concatenate(part, axis=1) for part in zip(*parts, strict=True)))


def _evidence(reviewed: ReviewedItems, label: int, stream: CalibrationStream, smallest: float, windows: int) -> ChangeEvidence:
    items = stream.items
    target_K, p_K, weight_K = (
        reviewed.targets_NL[items, label],
        reviewed.probabilities_NL[items, label],
        reviewed.weights_N[items],
    )
    weight_K = weight_K / weight_K.mean()
    more_K, fewer_K = np.minimum(p_K * smallest, 1.0), p_K / smallest
    values_2K = np.stack([weight_K * (target_K - more_K), weight_K * (fewer_K - target_K)], axis=1)
    bounds_2K = np.stack([weight_K * more_K, weight_K * (1 - fewer_K)], axis=1)
    # The bets in order of their windows, and within one in order of the sample.
    _, first, unit_K = np.unique(np.stack([stream.window, reviewed.units[items]]), axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    unit_K = rank[unit_K.ravel()]
    values_M2, bounds_M2 = np.zeros((len(order), 2)), np.zeros((len(order), 2))
    np.add.at(values_M2, unit_K, values_2K)
    np.add.at(bounds_M2, unit_K, bounds_2K)
    return betting_evidence(values_M2, np.maximum(bounds_M2, 1e-9), stream.window[first[order]], windows)


def positives_per_predicted(reviewed: ReviewedItems, stream: CalibrationStream, since: int) -> tuple[float, float]:
    """Return the positives of the sample's population since a window, and those that its probabilities state."""
    items, i = stream.items[stream.window >= since], reviewed.labels.index(stream.label)
    weight_K = reviewed.weights_N[items]
    return float(weight_K @ reviewed.targets_NL[items, i]), float(weight_K @ reviewed.probabilities_NL[items, i])


def surprising(reviewed: ReviewedItems, stream: CalibrationStream, since: int, most: int, *, more: bool) -> list[str]:
    """Return the ids of the reviewed items since a window that contribute most."""
    items, i = stream.items[stream.window >= since], reviewed.labels.index(stream.label)
    excess_K = reviewed.weights_N[items] * (reviewed.targets_NL[items, i] - reviewed.probabilities_NL[items, i])
    best = np.argsort(-excess_K if more else excess_K, kind="stable")
    return list(dict.fromkeys(reviewed.ids[k] for k in items[best]))[:most]


def reviewed_items(pairs: Sequence[tuple[Queue, Sequence[Decision]]], labels: Sequence[str], by: Sequence[str]) -> ReviewedItems:
    """Return the reviewed items of queues, in order of time.

    Args:
        pairs: queues with the decisions about them. Rows that were not drawn with a known probability, such as mined ones, are
            left out: they would show what was looked for.
        labels: labels of the traffic; those that a queue lacks are unknown there.
        by: columns of the slices.

    Raises:
        UserError: if a queue is no probability sample, or its rows have no time.
    """
    parts = [_sampled(queue, decisions, labels, by) for queue, decisions in pairs]
    order = np.argsort(np.concatenate([part.days for part in parts]), kind="stable")
    names = list(dict.fromkeys(name for part in parts for name in part.slices))
    authors = np.concatenate([part.units for part in parts])
    return ReviewedItems(
        [name for part in parts for name in part.ids],
        np.concatenate([part.days for part in parts]),
        authors,
        tuple(labels),
        np.concatenate([part.probabilities_NL for part in parts]),
        np.concatenate([part.targets_NL for part in parts]),
        np.concatenate([part.weights_N for part in parts]),
        {name: np.concatenate([part.slices.get(name, np.zeros(len(part.ids), np.bool_)) for part in parts]) for name in names},
    ).take(order)


def _sampled(queue: Queue, decisions: Sequence[Decision], labels: Sequence[str], by: Sequence[str]) -> ReviewedItems:
    table, where = queue.table, queue.record.traffic or "the queue"
    if queue.record.kind == "non-probability":
        raise UserError(f"queue of {where}: nobody knows how its rows were chosen; calibration needs a probability sample")
    drawn_N = np.array(
        [
            p is not None and purpose in ("estimate", "audit")
            for p, purpose in zip(table["inclusion_probability"].to_pylist(), table["purpose"].to_pylist(), strict=True)
        ],
        np.bool_,
    )
    times = table["time"]
    if times.null_count:
        raise UserError(f"queue of {where}: {times.null_count:,} rows have no time; calibration is compared by day")
    targets_NL = review_targets(queue, decisions, labels).value_NL
    probabilities_NL = np.stack(
        [
            table[PROBABILITY + label].to_numpy().astype(np.float64)
            if PROBABILITY + label in table.column_names
            else np.full(table.num_rows, np.nan)
            for label in labels
        ],
        axis=1,
    )
    ids = table["id"].to_pylist()
    authors = [
        author if author is not None else f"\0{name}" for author, name in zip(table["author"].to_pylist(), ids, strict=True)
    ]
    slices = {ALL: np.ones(table.num_rows, np.bool_)}
    for column in by:
        if column in table.column_names:
            values = [UNKNOWN if value is None else str(value) for value in table[column].to_pylist()]
            slices |= {f"{column}={value}": np.array([each == value for each in values]) for value in sorted(set(values))}
    return ReviewedItems(
        ids,
        times.cast(pa.date32()).to_numpy().astype("datetime64[D]"),
        np.array([int.from_bytes(blake2b(author.encode(), digest_size=7).digest(), "big") for author in authors], np.int64),
        tuple(labels),
        probabilities_NL,
        targets_NL,
        1 / table["inclusion_probability"].to_numpy().astype(np.float64),
        slices,
    ).take(np.flatnonzero(drawn_N))
