"""Agreement of a reviewed queue: by label, slice, reviewer and pair, with the truth that the answers point to."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.reviews.decisions import Decision
from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.agreement.accuracy import AnswerAccuracy, Source, Truth, measure_accuracy
from vigil_monitoring.agreement.adjudication import Doubtful, doubtful_items
from vigil_monitoring.agreement.alpha import Alpha, Level, krippendorff_alpha
from vigil_monitoring.agreement.answers import LabelAnswers, answers_by_label, reviewers_of
from vigil_monitoring.agreement.dawid_skene import UNSURE, DawidSkene, fit_dawid_skene
from vigil_monitoring.agreement.pairs import PairAgreement, agreement_with_others, pair_agreement, tables_of_pairs
from vigil_monitoring.queues.queue import Queue

MIN_SLICE_ITEMS = 20
"""Fewest items with two answers of a slice that has its own alpha."""

ENOUGH_ANSWERS = 3
"""Answers to an item from which reviewers' errors and the truth can be told apart without priors."""


@dataclass(frozen=True, slots=True)
class SliceAlpha:
    """Alpha of the items of a slice."""

    column: str
    value: str
    alpha: Alpha


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """Agreement about one label.

    Attributes:
        label: the label.
        items: items with an answer.
        enough: of them, those with three or more.
        answers: answers, with "cannot tell".
        cannot_tell: share of the answers that are "cannot tell".
        alpha: over all items.
        slices: of the slices that have enough items.
        positive: share of positive items that the answers point to, in the queue.
        positive_interval: by bootstrap over items.
        doubtful: number of items to adjudicate.
    """

    label: str
    items: int
    enough: int
    answers: int
    cannot_tell: float
    alpha: Alpha
    slices: tuple[SliceAlpha, ...]
    positive: float
    positive_interval: Interval | None
    doubtful: int


@dataclass(frozen=True, slots=True)
class ReviewerSummary:
    """One reviewer, over all labels.

    Attributes:
        reviewer: the name.
        items: items that were answered.
        answers: answers, one for each label, with "cannot tell".
        cannot_tell: share of the answers that are "cannot tell".
        pairs: pairs of an answer with another reviewer's about the same label of an item.
        agreement: share of these pairs that agree; ``None`` without pairs.
        minutes: total time; ``None`` where it was not measured.
        minutes_per_item: median time of an item; ``None`` where it was not measured.
    """

    reviewer: str
    items: int
    answers: int
    cannot_tell: float
    pairs: int
    agreement: float | None
    minutes: float | None
    minutes_per_item: float | None


@dataclass(frozen=True, slots=True)
class AgreementResult:
    """Body of a result of kind ``agreement``.

    Attributes:
        queue: path of the queue.
        labels: by label.
        reviewers: by reviewer.
        pairs: by label and pair of reviewers that share items.
        accuracy: each reviewer's from the answers alone (source ``latent``), and from gold and adjudicated items where there are
            any.
    """

    queue: str
    labels: tuple[LabelAgreement, ...]
    reviewers: tuple[ReviewerSummary, ...]
    pairs: tuple[PairAgreement, ...]
    accuracy: tuple[AnswerAccuracy, ...]


@dataclass(frozen=True, slots=True)
class AgreementOptions:
    """How agreement is measured.

    Attributes:
        level: of alpha; ``None``: nominal for answers of 0 and 1, interval for others.
        by: columns of the queue to slice by.
        weighted: an item counts one over its inclusion probability in the estimation of truth and accuracy.
        bounds: posteriors between them are doubtful.
        replicates: bootstrap replicates of alpha and kappa.
        confidence: of each interval.
        seed: random seed of the bootstraps.
    """

    level: Level | None = None
    by: tuple[str, ...] = ("language", "content_type", "market")
    weighted: bool = False
    bounds: tuple[float, float] = (0.05, 0.95)
    replicates: int = 1000
    confidence: float = 0.95
    seed: int = 0


Rows = Mapping[str, Mapping[str, Any]]
"""Id to the columns of a row of the queue."""


@dataclass(slots=True)
class _Collected:
    labels: list[LabelAgreement] = field(default_factory=list)
    pairs: list[PairAgreement] = field(default_factory=list)
    accuracy: list[AnswerAccuracy] = field(default_factory=list)
    doubtful: list[Doubtful] = field(default_factory=list)


def measure_agreement(
    queue: Queue,
    decisions: Sequence[Decision],
    gold: Truth | None = None,
    options: AgreementOptions | None = None,
    name: str = "",
) -> tuple[AgreementResult, list[Doubtful]]:
    """Measure the agreement of a queue's reviewers.

    Args:
        queue: the queue.
        decisions: reviewers' decisions about it.
        gold: known truth of some items.
        options: how (default: :class:`AgreementOptions`).
        name: path of the queue, for the result.

    Returns:
        The result, and what to adjudicate, largest expected gain first.
    """
    options = options or AgreementOptions()
    reviewers = reviewers_of(decisions)
    equal_W, pairs_W = np.zeros(len(reviewers), np.int64), np.zeros(len(reviewers), np.int64)
    rows = _rows_by_id(queue.table, (*options.by, "exposure", "inclusion_probability"))
    seen = [of for of in rows.values() if of["exposure"] is not None]
    reach = {id_: row["exposure"] or 0.0 for id_, row in rows.items()} if seen else None
    found = _Collected()
    settled: dict[tuple[str, str], float] = {}
    for answers in answers_by_label(decisions, queue.record.labels, reviewers, gold):
        fitted = fit_dawid_skene(
            *(answers.item_A, answers.reviewer_A, answers.answer_A),
            items=len(answers.ids),
            reviewers=len(reviewers),
            known_N=answers.known_N,
            weights_N=_weights(answers, rows) if options.weighted else None,
            confidence=options.confidence,
            seed=options.seed,
        )
        tables_WW22 = tables_of_pairs(answers.item_A, answers.reviewer_A, answers.answer_A, len(reviewers))
        equal, pairs = agreement_with_others(tables_WW22)
        equal_W, pairs_W = equal_W + equal, pairs_W + pairs
        found.pairs += _pairs(answers.label, reviewers, tables_WW22, options)
        found.accuracy += [
            of for of in fitted.accuracy(answers.label, reviewers, options.confidence) if of.positives + of.negatives > 0
        ]
        doubtful = doubtful_items(answers, fitted, *options.bounds, reach)
        found.doubtful += doubtful
        found.labels.append(_label(answers, fitted, rows, len(doubtful), options))
        settled |= {(id_, answers.label): value for id_, value in zip(answers.ids, answers.known_N.tolist(), strict=True)}
    adjudicated = {key: value for key, value in settled.items() if not np.isnan(value) and key not in (gold or {})}
    sources: tuple[tuple[Source, Truth], ...] = (("gold", gold or {}), ("adjudicated", adjudicated))
    for source, truth in sources:
        found.accuracy += measure_accuracy(decisions, truth, source=source, confidence=options.confidence)
    summaries = _reviewers(decisions, reviewers, equal_W, pairs_W)
    result = AgreementResult(name, tuple(found.labels), tuple(summaries), tuple(found.pairs), tuple(found.accuracy))
    return result, sorted(found.doubtful, key=lambda of: (-of.gain, of.id, of.label))


def _rows_by_id(table: pa.Table, columns: Sequence[str]) -> Rows:
    return {row["id"]: row for row in table.select(["id", *dict.fromkeys(columns)]).to_pylist()}


def _weights(answers: LabelAnswers, rows: Rows) -> Floats:
    """Return one over each item's inclusion probability; 0 for those that were not drawn with a probability."""
    chances = [rows[id_]["inclusion_probability"] for id_ in answers.ids]
    return np.array([0.0 if chance is None else 1 / float(chance) for chance in chances])


def _label(answers: LabelAnswers, fitted: DawidSkene, rows: Rows, doubtful: int, options: AgreementOptions) -> LabelAgreement:
    counts_N3 = answers.counts_N3()
    hard = bool(np.isin(answers.value_A[~np.isnan(answers.value_A)], (0, 1)).all())
    level: Level = options.level or ("nominal" if hard else "interval")

    def alpha(which_N: NDArray[np.bool_]) -> Alpha:
        which_A = which_N[answers.item_A]
        return krippendorff_alpha(
            *(answers.item_A[which_A], answers.value_A[which_A], level),
            replicates=options.replicates,
            confidence=options.confidence,
            seed=options.seed,
        )

    slices = []
    for column in options.by:
        values_N = np.array(["" if rows[id_][column] is None else str(rows[id_][column]) for id_ in answers.ids], object)
        for value in sorted(set(values_N) - {""}) if len(set(values_N)) > 1 else ():
            found = alpha(values_N == value)
            if found.items >= MIN_SLICE_ITEMS:
                slices.append(SliceAlpha(column, value, found))
    return LabelAgreement(
        label=answers.label,
        items=int((counts_N3.sum(1) > 0).sum()),
        enough=int((counts_N3.sum(1) >= ENOUGH_ANSWERS).sum()),
        answers=len(answers.item_A),
        cannot_tell=float((answers.answer_A == UNSURE).mean()) if len(answers.item_A) else 0.0,
        alpha=alpha(np.ones(len(answers.ids), np.bool_)),
        slices=tuple(slices),
        positive=fitted.prevalence,
        positive_interval=fitted.prevalence_interval,
        doubtful=doubtful,
    )


def _pairs(
    label: str, reviewers: Sequence[str], tables_WW22: NDArray[np.int64], options: AgreementOptions
) -> Iterator[PairAgreement]:
    for first, second in combinations(range(len(reviewers)), 2):
        if (table_22 := tables_WW22[first, second]).sum():
            names = reviewers[first], reviewers[second]
            yield pair_agreement(label, *names, table_22, options.replicates, options.confidence, options.seed)


def _reviewers(
    decisions: Sequence[Decision],
    reviewers: Sequence[str],
    equal_W: NDArray[np.int64],
    pairs_W: NDArray[np.int64],
) -> Iterator[ReviewerSummary]:
    given: dict[str, list[Decision]] = defaultdict(list)
    for of in decisions:
        if not of.adjudicated:
            given[of.reviewer].append(of)
    for reviewer, equal, pairs in zip(reviewers, equal_W.tolist(), pairs_W.tolist(), strict=True):
        minutes: dict[str, float] = defaultdict(float)
        for of in given[reviewer]:
            if of.minutes is not None:
                minutes[of.id] += of.minutes
        answers = len(given[reviewer])
        yield ReviewerSummary(
            reviewer=reviewer,
            items=len({of.id for of in given[reviewer]}),
            answers=answers,
            cannot_tell=sum(of.value is None for of in given[reviewer]) / answers,
            pairs=pairs,
            agreement=equal / pairs if pairs else None,
            minutes=sum(minutes.values()) if minutes else None,
            minutes_per_item=median(minutes.values()) if minutes else None,
        )
