"""Reviewers' decisions as arrays, one entry an answer."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vigil_data.reviews.decisions import Decision
from vigil_data.reviews.rules import latest_policy
from vigil_evaluation.metrics import Floats
from vigil_monitoring.agreement.accuracy import Truth
from vigil_monitoring.agreement.dawid_skene import NO, UNSURE, YES


@dataclass(frozen=True, slots=True)
class LabelAnswers:
    """Reviewers' answers about one label; of each item, those under its newest policy version.

    Attributes:
        label: the label.
        ids: the items that have an answer or known truth.
        item_A: place of each answer's item in ``ids``.
        reviewer_A: place of its reviewer in the list of reviewers.
        value_A: the answer in [0, 1]; NaN for "cannot tell".
        known_N: known truth of each item, 0 or 1, from adjudicators and gold items; NaN where unknown.
    """

    label: str
    ids: tuple[str, ...]
    item_A: NDArray[np.int64]
    reviewer_A: NDArray[np.int64]
    value_A: Floats
    known_N: Floats

    @property
    def answer_A(self) -> NDArray[np.int64]:
        """The answers as :data:`.NO`, :data:`.YES` (at least 0.5) and :data:`.UNSURE`."""
        return np.where(np.isnan(self.value_A), UNSURE, np.where(self.value_A >= 0.5, YES, NO))

    def counts_N3(self) -> NDArray[np.int64]:
        """Return each item's number of answers by kind: no, yes, cannot tell."""
        return np.bincount(3 * self.item_A + self.answer_A, minlength=3 * len(self.ids)).reshape(-1, 3)


def reviewers_of(decisions: Iterable[Decision]) -> tuple[str, ...]:
    """Return the reviewers other than adjudicators, sorted."""
    return tuple(sorted({of.reviewer for of in decisions if not of.adjudicated}))


def answers_by_label(
    decisions: Iterable[Decision], labels: Sequence[str], reviewers: Sequence[str], gold: Truth | None = None
) -> list[LabelAnswers]:
    """Return the answers about each label that was reviewed.

    Args:
        decisions: reviewers' decisions. Adjudicated ones are known truth and no answers; the newest counts.
        labels: labels, in the order of the result.
        reviewers: from :func:`reviewers_of`.
        gold: known truth, which precedes adjudicated truth.
    """
    place = {name: number for number, name in enumerate(reviewers)}
    given: dict[str, dict[str, list[Decision]]] = {label: defaultdict(list) for label in labels}
    for of in decisions:
        if of.label in given:
            given[of.label][of.id].append(of)
    found = []
    for label, by_item in given.items():
        rows: list[tuple[int, int, float]] = []
        known_N = np.full(len(by_item), np.nan)
        for number, (id_, all_of_item) in enumerate(by_item.items()):
            chosen = latest_policy(all_of_item)
            rows += [
                (number, place[of.reviewer], np.nan if of.value is None else of.value) for of in chosen if not of.adjudicated
            ]
            settled = [(of.time, float(of.value >= 0.5)) for of in chosen if of.adjudicated and of.value is not None]
            known_N[number] = (gold or {}).get((id_, label), max(settled)[1] if settled else np.nan)
        if by_item:
            item_A, reviewer_A, value_A = zip(*rows, strict=True) if rows else ((), (), ())
            arrays = np.asarray(item_A, np.int64), np.asarray(reviewer_A, np.int64), np.asarray(value_A, np.float64)
            found.append(LabelAnswers(label, tuple(by_item), *arrays, known_N))
    return found
