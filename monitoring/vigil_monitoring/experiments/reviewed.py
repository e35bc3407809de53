"""Reviewed decisions of an experiment: the rows of its queues with their weights and answers, found again in the traffic."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.queues.queue import Queue
from vigil_monitoring.reviews.answers import review_targets

Floats = NDArray[np.float64]


class ReviewedSample(NamedTuple):
    """Rows of probability samples.

    Attributes:
        ids_N: id of each row.
        micros_N: its time in microseconds since 1970-01-01 UTC; -1 where the queue has none.
        weight_N: 1 / inclusion probability.
        stratum_N: number of its queue and stratum, int64.
        value_NL: answers for the labels, NaN where unknown.
        labels: the labels, L.
        picked: rows of the queues that belong to no probability sample and are left out.
    """

    ids_N: list[str]
    micros_N: NDArray[np.int64]
    weight_N: Floats
    stratum_N: NDArray[np.int64]
    value_NL: Floats
    labels: tuple[str, ...]
    picked: int

    def violating(self, label: str | None) -> Floats:
        """Return the answer for a label, or whether any label applies; NaN where that is unknown."""
        if label is not None:
            return np.asarray(self.value_NL[:, self.labels.index(label)])
        unknown_N = np.isnan(self.value_NL).any(axis=1)
        most_N = np.nan_to_num(self.value_NL, nan=0.0).max(axis=1, initial=0.0)
        # One label that certainly applies is enough, whatever the others are.
        return np.where(unknown_N & (most_N < 1), np.nan, most_N)


def reviewed_sample(queues: Sequence[tuple[str, Queue, Sequence[Decision]]], labels: Sequence[str]) -> ReviewedSample:
    """Return the rows of the queues that are probability samples, with their answers.

    Args:
        queues: name of the file, queue, and reviewers' decisions about its items.
        labels: labels of the experiment.

    Raises:
        UserError: if a queue is no probability sample, or does not ask about a label.
    """
    tables, values, strata, picked, offset = [], [], [], 0, 0
    for name, queue, decisions in queues:
        if queue.record.kind == "non-probability":
            raise UserError(f"{name}: is not a probability sample, so it says nothing about the difference of two models")
        if absent := [label for label in labels if label not in queue.record.labels]:
            raise UserError(f"{name}: does not ask about {', '.join(absent)}; it asks about {', '.join(queue.record.labels)}")
        kept_N = pc.and_(queue.table["inclusion_probability"].is_valid(), pc.not_equal(queue.table["purpose"], "gold"))
        kept = np.asarray(kept_N.to_numpy(zero_copy_only=False), np.bool_)
        picked += int((~kept).sum())
        tables.append(queue.table.select(["id", "time", "inclusion_probability"]).filter(pa.array(kept)))
        values.append(review_targets(queue, decisions, labels).value_NL[kept])
        encoded = pc.fill_null(queue.table["stratum"].combine_chunks(), "").dictionary_encode()
        strata.append(encoded.indices.to_numpy(zero_copy_only=False)[kept].astype(np.int64) + offset)
        offset += len(encoded.dictionary)
    table = pa.concat_tables(tables)
    return ReviewedSample(
        table["id"].to_pylist(),
        pc.fill_null(table["time"].cast(pa.int64()), -1).to_numpy(),
        1 / table["inclusion_probability"].to_numpy(),
        np.concatenate(strata),
        np.concatenate(values),
        tuple(labels),
        picked,
    )


def rows_in_traffic(sample: ReviewedSample, ids: Sequence[str], micros_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row of the traffic of each sampled row: that of its id which is nearest in time; -1 if there is none.

    Args:
        sample: N sampled rows.
        ids: ids of M rows of the traffic.
        micros_M: their times.
    """
    places: dict[str, list[int]] = {}
    for place, id_ in enumerate(ids):
        places.setdefault(id_, []).append(place)
    found = np.full(len(sample.ids_N), -1, np.int64)
    for row, id_ in enumerate(sample.ids_N):
        if candidates := places.get(id_):
            found[row] = min(candidates, key=lambda place: abs(int(micros_M[place]) - int(sample.micros_N[row])))
    return found
