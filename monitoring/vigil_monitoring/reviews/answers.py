"""Reviewers' decisions about the items of a queue, and the targets that follow from them.

Example:
    >>> queue = read_queue(Path("queue.jsonl"))
    >>> targets = review_targets(queue, read_reviews(Path("reviews.jsonl"), queue), ["spam"])
    >>> targets.value_NL[:, 0]  # one for each row of the queue; NaN is unknown
    array([ 1.,  0., nan])
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import Problems, one_line
from vigil_data.importers.table_reader import TableRow, read_rows
from vigil_data.reviews.decisions import Decision, check_decisions
from vigil_data.reviews.rules import DEFAULT_RULES, Rule, decide
from vigil_monitoring.queues.queue import Queue


class ReviewTargets(NamedTuple):
    """What reviewers decided about each row of a queue.

    Attributes:
        value_NL: the target of each label, float64; NaN where it is unknown: not answered, no answer but "cannot tell", or a tie.
        cannot_tell_NL: whether all counted answers are "cannot tell"; bool.
        answers_NL: number of answers of all reviewers but "cannot tell"; int64.
        minutes_N: reviewers' time for the item, all labels and reviewers together, float64; NaN where none was measured.
    """

    value_NL: NDArray[np.float64]
    cannot_tell_NL: NDArray[np.bool_]
    answers_NL: NDArray[np.int64]
    minutes_N: NDArray[np.float64]


def asked_labels(queue: Queue) -> dict[str, tuple[str, ...]]:
    """Return each item that reviewers are asked about, once, in the order of the queue, with the labels to answer."""
    asked: dict[str, dict[str, None]] = {}
    for id_, labels in zip(queue.table["id"].to_pylist(), queue.table["ask"].to_pylist(), strict=True):
        if labels:
            asked.setdefault(id_, {}).update(dict.fromkeys(labels))
    return {id_: tuple(label for label in queue.record.labels if label in labels) for id_, labels in asked.items()}


def read_reviews(file: Path, queue: Queue, policy_version: str | None = None) -> list[Decision]:
    """Read reviewers' decisions about the items of a queue; see :func:`vigil_data.reviews.decisions.read_decisions`.

    Args:
        file: JSON Lines, CSV or Parquet.
        queue: the queue that was reviewed.
        policy_version: refuse decisions under another policy version (default: accept all).

    Raises:
        UserError: one line for each different mistake: an item or a label that the queue does not have, a reviewer who answers
            twice with different values, another policy version, and values that are none.
    """
    problems = Problems()
    return decisions_of(read_rows(file, problems), problems, file, queue, policy_version)


def decisions_of(
    rows: Iterable[TableRow],
    problems: Problems,
    file: Path,
    queue: Queue,
    policy_version: str | None = None,
    *,
    stored: Mapping[tuple[Any, ...], Decision] | None = None,
) -> list[Decision]:
    """Return the decisions of rows that a format yields; see :func:`read_reviews`.

    Args:
        rows: the rows.
        problems: has the mistakes of reading them.
        file: their file.
        queue: the queue that was reviewed.
        policy_version: see :func:`read_reviews`.
        stored: decisions that are kept already, by their key; a second answer of their reviewers is refused.
    """
    ids = set(queue.table["id"].to_pylist())
    decisions = check_decisions(rows, problems, ids, queue.record.labels, stored=stored or {}, whose="the queue")
    for given in decisions if policy_version is not None else ():
        if given.policy_version != policy_version:
            found = f"policy version {given.policy_version}" if given.policy_version else "no policy version"
            problems.add(
                given.position,
                f"decided under {found}, not {policy_version}; leave such decisions out, or have the items reviewed again",
            )
    if not decisions and not problems:
        problems.add(str(file), "no decisions")
    problems.raise_if_any()
    return decisions


def review_warnings(queue: Queue, decisions: Sequence[Decision]) -> list[str]:
    """Return what a user should know before decisions are used, one line each."""
    lines = []
    versions = Counter(of.policy_version for of in decisions)
    if len(versions) > 1:
        shown = ", ".join(f"{count:,} under {version or 'none'}" for version, count in versions.most_common(5))
        lines.append(
            f"decisions under {len(versions)} policy versions ({shown}); the rule latest-policy counts those under the newest "
            "for each label of an item"
        )
    answered = {(of.id, of.label) for of in decisions}
    asked = {(id_, label) for id_, labels in asked_labels(queue).items() for label in labels}
    if missing := len(asked - answered):
        lines.append(f"{missing:,} of {len(asked):,} answers that the queue asks for are not given; they stay unknown")
    return [one_line(line) for line in lines]


def review_targets(
    queue: Queue, decisions: Sequence[Decision], labels: Sequence[str], rules: Sequence[Rule] = DEFAULT_RULES
) -> ReviewTargets:
    """Return the targets of a queue's rows by the rules with which `vigil data merge-labels` decides.

    Args:
        queue: N rows; rows with the same id have the same targets.
        decisions: reviewers' decisions; those about other items or labels are not counted.
        labels: L labels.
        rules: from :func:`vigil_data.reviews.rules.check_rules`.
    """
    ids = queue.table["id"].to_pylist()
    place = {label: number for number, label in enumerate(labels)}
    given: dict[str, list[list[Decision]]] = {id_: [[] for _ in labels] for id_ in ids}
    minutes: dict[str, float] = {}
    for decision in decisions:
        if decision.id not in given:
            continue
        if decision.minutes is not None:
            minutes[decision.id] = minutes.get(decision.id, 0.0) + decision.minutes
        if decision.label in place:
            given[decision.id][place[decision.label]].append(decision)
    shape = len(ids), len(labels)
    value_NL, cannot_tell_NL, answers_NL = np.full(shape, np.nan), np.zeros(shape, np.bool_), np.zeros(shape, np.int64)
    for row, id_ in enumerate(ids):
        for column, answers in enumerate(given[id_]):
            if answers:
                value, votes = decide(answers, rules)
                value_NL[row, column] = np.nan if value is None else value
                cannot_tell_NL[row, column] = not votes
                answers_NL[row, column] = sum(of.value is not None for of in answers)
    return ReviewTargets(value_NL, cannot_tell_NL, answers_NL, np.array([minutes.get(id_, np.nan) for id_ in ids], np.float64))
