"""Sums of every goal of an experiment: decisions of the traffic, and reviewed decisions with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_monitoring.experiments.cluster_sums import ClusterSums
from vigil_monitoring.experiments.decisions import CHALLENGER, CHAMPION, Booleans, Clusters, Decisions, Floats
from vigil_monitoring.experiments.reviewed import ReviewedSample
from vigil_monitoring.experiments.spec import TRAFFIC_METRICS, DecisiveMetric, Guardrail

MAX_WITHOUT_ANSWERS = 0.05
"""Share of missing answers above which the difference is also computed for all of them 0 and all 1."""


@dataclass(slots=True)
class Tally:
    """Sums of one goal in one slice.

    Attributes:
        spec: the goal.
        column: column of the slice; ``None`` for all decisions.
        value: value of the column.
        sums: sums for the difference, missing answers adjusted for within strata.
        extremes: sums with all missing answers 0, and all 1.
        missing: weight of the reviewed rows without an answer.
        total: weight of all reviewed rows.
    """

    spec: DecisiveMetric | Guardrail
    column: str | None
    value: str | None
    sums: ClusterSums
    extremes: tuple[ClusterSums, ClusterSums] | None = None
    missing: float = 0.0
    total: float = 0.0

    @property
    def of_traffic(self) -> bool:
        """Whether all decisions count, without reviews."""
        return self.spec.metric in TRAFFIC_METRICS

    @property
    def without_answers(self) -> float | None:
        """Share of the weight of the reviewed rows without an answer; ``None`` for metrics of traffic."""
        return self.missing / self.total if self.total else None

    def slice(self, decisions: Decisions) -> Booleans | None:
        """Return which decisions are in the slice; ``None`` for all."""
        if self.column is None:
            return None
        values = decisions.rows[self.column].cast("string")
        chosen = values.is_null() if self.value is None else pc.fill_null(pc.equal(values, self.value), False)
        return np.asarray(chosen.to_numpy(zero_copy_only=False), np.bool_)


@dataclass(slots=True)
class Tallies:
    """Sums of all goals.

    Attributes:
        metrics: of the verdict.
        guardrails: in each slice.
    """

    metrics: list[Tally]
    guardrails: list[Tally] = field(default_factory=list)

    @property
    def all(self) -> list[Tally]:
        """Metrics, then guardrails."""
        return [*self.metrics, *self.guardrails]


def new_tally(spec: DecisiveMetric | Guardrail, clusters: Clusters, value: str | None = None) -> Tally:
    """Return empty sums of a goal."""
    column = spec.by if isinstance(spec, Guardrail) else None

    def empty() -> ClusterSums:
        return ClusterSums(clusters.times, clusters.groups)

    return Tally(spec, column, value, empty(), None if spec.metric in TRAFFIC_METRICS else (empty(), empty()))


def add_traffic(tallies: Sequence[Tally], decisions: Decisions) -> None:
    """Add decisions to the metrics that need no reviews."""
    for tally in tallies:
        if tally.of_traffic:
            weight_N = decisions.weights(tally.spec)
            positive_N = decisions.reviewed() if tally.spec.metric == "review_load" else decisions.acted(tally.spec)
            _add(tally.sums, tally, decisions, positive_N * weight_N, weight_N)


def add_reviewed(
    tallies: Sequence[Tally],
    decisions: Decisions,
    sample: ReviewedSample,
    sampled_M: NDArray[np.int64],
    takes_down: Sequence[str],
) -> None:
    """Add reviewed decisions to the metrics that need reviews.

    Args:
        tallies: the goals.
        decisions: M decisions.
        sample: the sampled rows.
        sampled_M: the sampled row of each decision.
        takes_down: actions after which an item is no longer up.
    """
    adjusted: dict[str | None, Floats] = {}
    for tally in tallies:
        if tally.of_traffic:
            continue
        assert tally.extremes is not None
        label = tally.spec.label
        if label not in adjusted:
            adjusted[label] = adjusted_weights(sample, label)
        answer_M = sample.violating(label)[sampled_M]
        design_M, known_M = sample.weight_N[sampled_M], ~np.isnan(answer_M)
        size_M = decisions.weights(tally.spec)
        in_slice = tally.slice(decisions)
        counted_M = (decisions.arm_N == CHAMPION) & (True if in_slice is None else in_slice)
        counted_M |= (decisions.arm_N == CHALLENGER) & (True if in_slice is None else in_slice)
        tally.total += float((design_M * size_M)[counted_M].sum())
        tally.missing += float((design_M * size_M)[counted_M & ~known_M].sum())
        answers = np.nan_to_num(answer_M, nan=0.0), np.nan_to_num(answer_M, nan=1.0)
        weights = adjusted[label][sampled_M] * size_M * known_M, design_M * size_M, design_M * size_M
        for sums, answer, weight in zip((tally.sums, *tally.extremes), (answers[0], *answers), weights, strict=True):
            _add(sums, tally, decisions, *_terms(tally, decisions, answer, weight, takes_down))


def adjusted_weights(sample: ReviewedSample, label: str | None) -> Floats:
    """Return weights of the answered rows that stand for the unanswered ones of their stratum too, 0 for the unanswered."""
    known_N = ~np.isnan(sample.violating(label))
    strata = int(sample.stratum_N.max(initial=-1)) + 1
    all_, answered = (np.bincount(sample.stratum_N, sample.weight_N * of, strata) for of in (np.ones(len(known_N)), known_N))
    factor = np.divide(all_, answered, out=np.zeros(strata), where=answered > 0)
    return np.asarray(sample.weight_N * known_N * factor[sample.stratum_N])


def _terms(
    tally: Tally, decisions: Decisions, answer_M: Floats, weight_M: Floats, takes_down: Sequence[str]
) -> tuple[Floats, Floats]:
    """Return numerator and denominator of a metric."""
    if tally.spec.metric == "violations_left_up":
        return weight_M * answer_M * decisions.up(takes_down), weight_M
    acted_M = decisions.acted(tally.spec)
    if tally.spec.metric == "precision":
        return weight_M * answer_M * acted_M, weight_M * acted_M
    of_M = weight_M * (answer_M if tally.spec.metric == "recall" else 1 - answer_M)
    return of_M * acted_M, of_M


def _add(sums: ClusterSums, tally: Tally, decisions: Decisions, numerator_N: Floats, denominator_N: Floats) -> None:
    in_slice = tally.slice(decisions)
    for arm in (CHAMPION, CHALLENGER):
        rows = decisions.arm_N == arm
        if in_slice is not None:
            rows &= in_slice
        if rows.any():
            sums.add(
                arm == CHALLENGER,
                *(values[rows] for values in (decisions.time_N, decisions.group_N, numerator_N, denominator_N)),
            )
