"""The reviewed rows of a queue as a probability sample of the traffic, with what reviewers decided."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import Problems, UserError
from vigil_data.importers.table_reader import read_rows
from vigil_data.reviews.decisions import Decision
from vigil_evaluation.metrics import Floats
from vigil_monitoring.agreement.accuracy import DECIDED, AnswerAccuracy, measure_accuracy, read_gold
from vigil_monitoring.queues.queue import Queue
from vigil_monitoring.reviews.answers import decisions_of, review_targets
from vigil_monitoring.survey.probability_sample import Codes, ProbabilitySample

CLUSTER_COLUMNS = ("author", "thread")


@dataclass(frozen=True)
class ReviewedSample:
    """Rows of a queue that were drawn from the traffic, with their targets.

    Attributes:
        queue: the queue, only with these rows.
        sample: how they were drawn.
        labels: labels that reviewers were asked about.
        targets_NL: targets, NaN where unknown.
        in_period_N: whether each row is in the period that is estimated; the others count for the variance only.
        minutes: mean of the reviewers' minutes for a row; ``None`` where none were measured.
        clusters_N: cluster of each row; ``None`` without.
        biased: whether the rows are no probability sample.
        notes: what a reader of the estimates should know.
    """

    queue: Queue
    sample: ProbabilitySample
    labels: tuple[str, ...]
    targets_NL: Floats
    in_period_N: NDArray[np.bool_]
    minutes: float | None
    clusters_N: Codes | None
    biased: bool
    notes: tuple[str, ...] = ()


def read_decisions(files: Sequence[Path], queue: Queue, policy_version: str | None) -> list[Decision]:
    """Read reviewers' decisions about a queue from one or more files.

    The first file is about the queue alone. Further files, such as reviews of an earlier queue, may have other items, which are
    left out.

    Raises:
        UserError: as :func:`vigil_monitoring.reviews.answers.read_reviews`; for decisions about one label under several policy
            versions; and where two files disagree.
    """
    ids = set(queue.table["id"].to_pylist())
    problems = Problems()
    rows = list(read_rows(files[0], problems))
    for file in files[1:]:
        rows += [row for row in read_rows(file, problems) if str(row.values.get("id")) in ids]
    decisions = decisions_of(rows, problems, files[0], queue, policy_version)
    versions: dict[str, Counter[str]] = {}
    for of in decisions:
        versions.setdefault(of.label, Counter())[of.policy_version or "no version"] += 1
    mixed = [
        f"{label}: reviewed under {len(found)} policy versions ({', '.join(f'{v}: {n:,}' for v, n in sorted(found.items()))}); "
        "a prevalence under two definitions is no number: review all rows under one version, or draw a queue for the days of each"
        for label, found in sorted(versions.items())
        if len(found) > 1
    ]
    if mixed:
        raise UserError(*(f"{files[0]}: {line}" for line in mixed))
    return decisions


def reviewed_sample(
    queue: Queue,
    decisions: Sequence[Decision],
    *,
    days: tuple[date, date] | None = None,
    cluster: str | None = None,
    biased: bool = False,
    name: str = "the queue",
) -> ReviewedSample:
    """Return the reviewed sample of a queue.

    Rows for measuring reviewers (purpose gold) and rows without an inclusion probability are no part of it.

    Args:
        queue: the queue.
        decisions: reviewers' decisions about it.
        days: first and last day to estimate (default: all).
        cluster: column of the clusters: ``author`` or ``thread``.
        biased: accept rows that are no probability sample, with equal weights; every estimate is then marked.
        name: how errors call the queue.

    Raises:
        UserError: for a non-probability queue without ``biased``, or a label that only some rows ask about.
    """
    table, record, notes = queue.table, queue.record, list[str]()
    table = table.filter(pc.not_equal(table["purpose"], "gold"))
    drawn = table.filter(pc.is_valid(table["inclusion_probability"]))
    if record.kind == "non-probability" or not drawn.num_rows:
        if not biased:
            raise UserError(
                f"{name}: its rows are no probability sample (kind {record.kind}): such reviews, such as appeals, do not "
                "represent the traffic. Draw a queue with vigil monitor sample, or add --biased to get numbers that are marked"
            )
        probability_N, strata_N = np.full(table.num_rows, min(table.num_rows / max(record.items, 1), 1.0)), None
    else:
        if left := table.num_rows - drawn.num_rows:
            notes.append(f"{left:,} rows of the queue that were picked without an inclusion probability are left out")
        if biased:
            notes.append("the queue is a probability sample, so --biased has no effect")
        table, biased = drawn, False
        probability_N = drawn["inclusion_probability"].to_numpy()
        strata_N = _codes(drawn["stratum"])
    labels = _labels(table, record.labels, name)
    kept = Queue(table, replace(record, rows=table.num_rows))
    if strata_N is None:
        strata_N = np.zeros(table.num_rows, np.int64)
    clusters_N = None
    if cluster is not None:
        if cluster not in CLUSTER_COLUMNS:
            raise UserError(f"--cluster {cluster}: clusters are of {' or '.join(CLUSTER_COLUMNS)}")
        clusters_N = _codes(table[cluster], missing=-1)
        if (clusters_N < 0).all():
            raise UserError(f"--cluster {cluster}: no row of {name} has a value of {cluster}")
    targets = review_targets(kept, decisions, labels)
    if not (~np.isnan(targets.value_NL)).any():
        raise UserError(f"{name}: no row has an answer other than cannot tell")
    measured_N = targets.minutes_N[~np.isnan(targets.minutes_N)]
    return ReviewedSample(
        kept,
        ProbabilitySample(probability_N, strata_N),
        labels,
        targets.value_NL,
        _in_days(table, days),
        float(measured_N.mean()) if len(measured_N) else None,
        clusters_N,
        biased,
        tuple(notes),
    )


def measured_accuracy(gold: Path | None, queue: Queue, decisions: Sequence[Decision]) -> Mapping[str, AnswerAccuracy]:
    """Return the accuracy of the decided targets of each label, from items with known truth; none without a file.

    Args:
        gold: file of known truth, :func:`vigil_monitoring.agreement.accuracy.read_gold`; its items are in the queue.
        queue: the queue.
        decisions: reviewers' decisions about it.

    Raises:
        UserError: if a label lacks positive or negative gold items with an answer, or its answers are no better than chance.
    """
    if gold is None:
        return {}
    truth = read_gold(gold, queue.record.labels)
    found = {of.label: of for of in measure_accuracy(decisions, truth) if of.reviewer == DECIDED}
    for label in queue.record.labels:
        of = found.get(label)
        if of is None or of.sensitivity is None or of.specificity is None:
            lacks = "positive or negative" if of is None else "positive" if of.sensitivity is None else "negative"
            raise UserError(
                f"{gold}: {label} has no {lacks} item that was answered; a correction needs both kinds for every label"
            )
        if of.sensitivity + of.specificity <= 1:
            raise UserError(
                f"{gold}: answers about {label} are no better than chance (sensitivity {of.sensitivity:.3g}, specificity "
                f"{of.specificity:.3g}); no correction is possible"
            )
    return found


def _in_days(table: pa.Table, days: tuple[date, date] | None) -> NDArray[np.bool_]:
    """Return which rows of a queue are of a period; all where rows have no time."""
    times = table["time"].combine_chunks()
    if days is None or times.null_count == len(times):
        return np.ones(table.num_rows, np.bool_)
    days_N = times.cast(pa.timestamp("us")).cast(pa.date32(), safe=False).to_numpy(zero_copy_only=False)
    inside_N: NDArray[np.bool_] = (days_N >= np.datetime64(days[0])) & (days_N <= np.datetime64(days[1]))
    return inside_N


def _codes(column: pa.ChunkedArray, missing: int | None = None) -> Codes:
    """Return numbers of a column's values; nulls are one value of their own, or ``missing``."""
    encoded = column.combine_chunks().dictionary_encode()
    found: Codes = np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), np.int64)
    return np.where(found < 0, len(encoded.dictionary), found) if missing is None else np.where(found < 0, missing, found)


def _labels(table: pa.Table, labels: Sequence[str], name: str) -> tuple[str, ...]:
    """Return the labels that the rows ask about.

    Rows that are in the queue for certain, such as those of an earlier queue, may ask about fewer: their answers are elsewhere.
    """
    chance = table.filter(pc.less(table["inclusion_probability"], 1.0))["ask"].to_pylist()
    for label in labels:
        if 0 < (count := sum(label in ask for ask in chance)) < len(chance):
            raise UserError(
                f"{name}: asks about {label} in {count:,} of {len(chance):,} rows, so the inclusion probabilities are not those "
                f"of answers about {label}; draw a queue that asks about the same labels everywhere"
            )
    asked = {label for ask in table["ask"].to_pylist() for label in ask}
    return tuple(label for label in labels if not asked or label in asked)
