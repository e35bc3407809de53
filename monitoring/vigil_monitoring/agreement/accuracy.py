"""Accuracy of reviewers' answers where the truth is known: gold items and adjudicated ones.

Example:
    >>> truth = read_gold(Path("gold.csv"), ("hate",))
    >>> measure_accuracy(decisions, truth)
    [AnswerAccuracy(label='hate', reviewer='', source='gold', sensitivity=0.93, …), AnswerAccuracy(…, reviewer='ann', …)]
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vigil_data.errors import Problems, shown
from vigil_data.importers.table_reader import read_rows
from vigil_data.reviews.decisions import Decision
from vigil_data.reviews.rules import DEFAULT_RULES, Rule, decide
from vigil_evaluation.stats.binomial import clopper_pearson
from vigil_evaluation.stats.intervals import Interval

DECIDED = ""
"""Reviewer of the target that the rules decide from all answers."""

Truth = Mapping[tuple[str, str], float]
"""Item and label to the true value, 0 or 1."""

Source = Literal["gold", "adjudicated", "latent"]


@dataclass(frozen=True, slots=True)
class AnswerAccuracy:
    """How often the answers about a label are right, given that there is an answer: "cannot tell" is none.

    Attributes:
        label: the label.
        reviewer: who answered; :data:`DECIDED` for the target that the rules decide from all answers.
        source: where the truth is from: ``gold`` items, ``adjudicated`` ones, or ``latent``: estimated together with the
            accuracy (:mod:`.dawid_skene`).
        sensitivity: share of the positive items that are answered positive; ``None`` without positive items.
        sensitivity_interval: exact (Clopper-Pearson) for the effective number.
        positives: effective number of positive items that were answered; the variance of the sensitivity ``s`` is
            ``s (1 - s) / positives``. For ``latent``, the uncertainty of the truth makes it smaller than their number.
        specificity: share of the negative items that are answered negative; ``None`` without negative items.
        specificity_interval: as for the sensitivity.
        negatives: effective number of negative items that were answered.
    """

    label: str
    reviewer: str
    source: Source
    sensitivity: float | None
    sensitivity_interval: Interval | None
    positives: float
    specificity: float | None
    specificity_interval: Interval | None
    negatives: float


def accuracy_of_counts(  # noqa: PLR0917 (counts of a two by two table)
    label: str,
    reviewer: str,
    source: Source,
    found: float,
    positives: float,
    rejected: float,
    negatives: float,
    confidence: float = 0.95,
) -> AnswerAccuracy:
    """Return the accuracy that follows from counts, which may be effective, fractional numbers.

    Args:
        label: the label.
        reviewer: who answered.
        source: where the truth is from.
        found: positive items that were answered positive.
        positives: positive items that were answered.
        rejected: negative items that were answered negative.
        negatives: negative items that were answered.
        confidence: of each interval.
    """
    shares: list[Any] = []
    for hits, count in ((found, positives), (rejected, negatives)):
        some = count > 0
        shares += [hits / count if some else None, clopper_pearson(hits, count, confidence) if some else None, float(count)]
    return AnswerAccuracy(label, reviewer, source, *shares)


def measure_accuracy(
    decisions: Iterable[Decision],
    truth: Truth,
    rules: Sequence[Rule] = DEFAULT_RULES,
    *,
    source: Source = "gold",
    confidence: float = 0.95,
) -> list[AnswerAccuracy]:
    """Compare reviewers' answers, and the targets that the rules decide from them, with known truth.

    Adjudicated decisions are no reviewer's answer and do not count.

    Args:
        decisions: reviewers' decisions; an answer of at least 0.5 is positive.
        truth: known values of items and labels.
        rules: rules that decide a target from several answers.
        source: where the truth is from.
        confidence: of each interval.

    Returns:
        By label: that of the decided target, then each reviewer's in the order of the names.
    """
    given: dict[tuple[str, str], list[Decision]] = defaultdict(list)
    for of in decisions:
        if (of.id, of.label) in truth and not of.adjudicated:
            given[of.id, of.label].append(of)
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for (item, label), answers in given.items():
        target, votes = decide(answers, rules)
        judged = [(DECIDED, target), *((of.reviewer, of.value) for of in votes)]
        for reviewer, value in judged:
            row = counts[label, reviewer]
            if value is not None:
                positive, right = truth[item, label] >= 0.5, (value >= 0.5) == (truth[item, label] >= 0.5)
                place = 0 if positive else 2
                row[place] += right
                row[place + 1] += 1
    return [
        accuracy_of_counts(label, reviewer, source, row[0], row[1], row[2], row[3], confidence)
        for (label, reviewer), row in sorted(counts.items())
    ]


def read_gold(path: Path, labels: Collection[str]) -> dict[tuple[str, str], float]:
    """Read items with known truth: columns ``id``, ``label`` and ``value`` (0 or 1); further ones are ignored.

    Args:
        path: JSON Lines, CSV or Parquet.
        labels: labels that may occur.

    Raises:
        UserError: one line with ``FILE:LINE`` for each different mistake.
    """
    problems, found, positions = Problems(), dict[tuple[str, str], float](), dict[tuple[str, str], str]()
    for row in read_rows(path, problems):
        missing = [name for name in ("id", "label", "value") if row.values.get(name) in (None, "")]
        if missing:
            problems.add(row.position, f"{', '.join(missing)} is missing; a gold item has id, label and value (0 or 1)")
            continue
        key, value = (str(row.values["id"]), str(row.values["label"])), _binary(row.values["value"])
        if value is None:
            problems.add(row.position, f"value is {shown(row.values['value'])}, not 0 or 1")
        elif key[1] not in labels:
            problems.add(row.position, f"unknown label {key[1]}; the labels are {', '.join(labels)}")
        elif found.setdefault(key, value) != value:
            problems.add(row.position, f"{key[1]} of {key[0]} is {value:g}, but {found[key]:g} at {positions[key]}")
        else:
            positions.setdefault(key, row.position)
    if not found and not problems:
        problems.add(str(path), "no gold items")
    problems.raise_if_any()
    return found


def _binary(given: Any) -> float | None:
    try:
        number = float(given)
    except (TypeError, ValueError):
        return None
    return number if number in (0.0, 1.0) else None
