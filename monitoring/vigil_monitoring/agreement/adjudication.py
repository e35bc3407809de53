"""Items for an adjudicator: those whose target is likely to be wrong, most wrong decisions avoided first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vigil_monitoring.agreement.answers import LabelAnswers
from vigil_monitoring.agreement.dawid_skene import NO, UNSURE, YES, DawidSkene
from vigil_monitoring.queues.queue import Queue, queue_table

WITHOUT_TARGET = 0.5
"""Expected error of a label without a target, because of a tie or "cannot tell" alone: that of a guess."""


class Doubtful(NamedTuple):
    """A label of an item that should be adjudicated.

    Attributes:
        id: the item.
        label: the label.
        no: number of negative answers.
        yes: number of positive answers.
        cannot_tell: number of answers "cannot tell".
        posterior: probability that the item is positive.
        gain: expected number of wrong targets that adjudication avoids, times the item's reach.
    """

    id: str
    label: str
    no: int
    yes: int
    cannot_tell: int
    posterior: float
    gain: float


def doubtful_items(
    answers: LabelAnswers, fitted: DawidSkene, low: float = 0.05, high: float = 0.95, reach: Mapping[str, float] | None = None
) -> list[Doubtful]:
    """Return the items whose posterior lies between bounds, or whose reviewers disagree or cannot tell; largest gain first.

    The gain is the probability that the majority's target is wrong; with ``reach``, times the item's reach, so that it counts
    views of wrong decisions. Items with known truth are settled.

    Args:
        answers: the answers about a label.
        fitted: the model that was fitted to them.
        low: upper end of a posterior that is surely negative.
        high: lower end of one that is surely positive.
        reach: id to its reach, such as exposure (default: 1 each).
    """
    found = []
    counts_N3 = answers.counts_N3()
    for number, id_ in enumerate(answers.ids):
        no, yes, unsure = (int(counts_N3[number, answer]) for answer in (NO, YES, UNSURE))
        posterior = float(fitted.posterior_N[number])
        if not np.isnan(answers.known_N[number]) or np.isnan(posterior):
            continue
        if low < posterior < high or (no and yes) or no == yes:
            wrong = WITHOUT_TARGET if no == yes else (1 - posterior if yes > no else posterior)
            found.append(Doubtful(id_, answers.label, no, yes, unsure, posterior, wrong * (reach or {}).get(id_, 1.0)))
    return sorted(found, key=lambda of: (-of.gain, of.id))


def adjudication_queue(queue: Queue, doubtful: Sequence[Doubtful]) -> Queue:
    """Return a queue that asks about the doubtful labels of each item, in the order of the items' gain over all labels.

    Args:
        queue: the queue that was reviewed.
        doubtful: what to adjudicate, of all labels.
    """
    gains: dict[str, dict[str, float]] = {}
    for of in doubtful:
        gains.setdefault(of.id, {})[of.label] = of.gain
    rows = {row["id"]: row for row in queue.table.to_pylist() if row["id"] in gains}
    chosen = [
        {**rows[id_], "ask": [label for label in queue.record.labels if label in gains[id_]]}
        | {"purpose": "mined", "inclusion_probability": None, "stratum": None}
        for id_ in sorted(gains, key=lambda id_: (-sum(gains[id_].values()), id_))
    ]
    record = replace(queue.record, kind="non-probability", method="adjudication", budget=len(chosen), strata=(), design={})
    return Queue(queue_table(chosen, queue.record.labels), record)
