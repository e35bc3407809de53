"""Scores of a traffic's decisions by the strategies that a mining design names.

Example:
    >>> evidence = Evidence(embeddings=read_embeddings(Path("embeddings.parquet")), errors=errors)
    >>> design, scores, left_out = score_traffic(traffic, read_design(Path("mining.yaml")), evidence, seed=0)
    >>> draw(traffic, design, 200, 0, scores=scores)
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision
from vigil_data.reviews.rules import DEFAULT_RULES, decide, latest_policy
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.constraints import ACTIONS
from vigil_monitoring.mining.embeddings import EMBEDDING, MAX_FITTED, Clusters, Embeddings, unit_vectors
from vigil_monitoring.mining.strategies import ACTED_FROM, expected_change, relevance, similarity_to, uncertainty
from vigil_monitoring.queues.queue import Queue
from vigil_monitoring.sampling.design import Design, Strategy
from vigil_monitoring.sampling.pairs import DISAGREE, Challenger
from vigil_monitoring.sampling.population import highest
from vigil_monitoring.sampling.row_keys import row_keys
from vigil_monitoring.traffic.reader import Traffic, decisive

ALLOW = ACTIONS[0]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known in addition to the traffic.

    Attributes:
        embeddings: embeddings by id; those of the traffic's column ``embedding`` otherwise.
        known: unit vectors of items that the model knows, such as its training data, ``[K, D]``.
        errors: ids of reviewed items that the model decided wrongly, or about which reviewers disagree.
        minutes: median minutes of a review by content type; ``None`` for all.
        challenger: the other model's decisions.
    """

    embeddings: Embeddings | None = None
    known: Floats | None = None
    errors: tuple[str, ...] = ()
    minutes: Mapping[str | None, float] = field(default_factory=dict)
    challenger: Challenger | None = None


def reviewed_evidence(reviewed: Sequence[tuple[Queue, Sequence[Decision]]]) -> tuple[tuple[str, ...], dict[str | None, float]]:
    """Return the ids of known errors, and the median minutes of an item by content type.

    An item is an error if a label's target contradicts the model (probability of 0.5 and above or below), or if its answers
    differ.

    Args:
        reviewed: queues with the decisions about them.
    """
    errors: dict[str, None] = {}
    minutes: dict[str | None, list[float]] = defaultdict(list)
    for queue, decisions in reviewed:
        given: dict[tuple[str, str], list[Decision]] = defaultdict(list)
        spent: dict[tuple[str, str], float] = defaultdict(float)
        for of in decisions:
            given[of.id, of.label].append(of)
            if of.minutes is not None:
                spent[of.id, of.reviewer] += of.minutes
        rows = {row["id"]: row for row in queue.table.to_pylist()}
        for (id_, label), answers in given.items():
            target, _ = decide(answers, DEFAULT_RULES)
            votes = {of.value >= ACTED_FROM for of in latest_policy(answers) if of.value is not None}
            p = rows[id_][f"probability.{label}"]
            contradicted = target is not None and p is not None and (target >= ACTED_FROM) != (p >= ACTED_FROM)
            if contradicted or len(votes) > 1:
                errors[id_] = None
        for (id_, _), total in spent.items():
            for name in {rows[id_]["content_type"], None}:
                minutes[name].append(total)
    return tuple(errors), {name: max(median(values), 0.01) for name, values in minutes.items()}


class StrategyScores:
    """Scores by strategy; see :class:`vigil_monitoring.sampling.population.Scores`.

    Args:
        traffic: the decisions.
        labels: labels of the design.
        strategies: those for which there is evidence.
        evidence: what is known in addition to the traffic.
        clusters: clusters of the embeddings, for the strategies that need them.
        anchors_KD: unit vectors of known errors, for the strategy that needs them.
    """

    def __init__(  # noqa: PLR0917 (the traffic, and what is known of it)
        self,
        traffic: Traffic,
        labels: Sequence[str],
        strategies: Collection[Strategy],
        evidence: Evidence,
        clusters: Clusters | None = None,
        anchors_KD: Floats | None = None,
    ) -> None:
        self._traffic, self._labels, self._evidence = traffic, pa.array(labels, pa.string()), evidence
        self._clusters, self._anchors_KD = clusters, anchors_KD
        by_strategy: dict[Strategy, Callable[[_Rows], Floats]] = {
            "uncertainty": lambda rows: uncertainty(rows.probability_NL),
            "relevance": lambda rows: relevance(rows.probability_NL),
            "expected_change": self._change,
            "disagreement": self._disagreement,
            "known_errors": self._known_errors,
            "new_clusters": lambda rows: self._of_clusters(rows)[0],
            "typical": lambda rows: self._of_clusters(rows)[1],
        }
        self._by_strategy = {strategy: by_strategy[strategy] for strategy in strategies}

    @property
    def columns(self) -> Collection[str]:
        """Columns of the traffic that the scores need."""
        embedded = self._clusters is not None or self._anchors_KD is not None
        own = _embedding_columns(self._evidence) if embedded else ()
        return ("id", "action", "labels", "reasons", "content_type", *own)

    def of(self, batch: pa.RecordBatch, probability_NL: Floats, exposure_N: Floats | None) -> dict[Strategy, Floats]:
        """Return the score of each row by strategy."""
        rows = _Rows(batch, probability_NL, exposure_N)
        return {strategy: score(rows) for strategy, score in self._by_strategy.items()}

    def _disagreement(self, rows: "_Rows") -> Floats:
        assert self._evidence.challenger is not None
        return np.asarray(self._evidence.challenger.of(rows.batch, self._traffic) == DISAGREE, np.float64)

    def _known_errors(self, rows: "_Rows") -> Floats:
        assert self._anchors_KD is not None
        return similarity_to(_vectors(rows.batch, self._evidence, self._traffic), self._anchors_KD)

    def _of_clusters(self, rows: "_Rows") -> tuple[Floats, Floats]:
        """Return the lift of each row's cluster and its typicality within it; 0 without an embedding."""
        assert self._clusters is not None
        vector_ND = _vectors(rows.batch, self._evidence, self._traffic)
        code_N, there_N = self._clusters.codes(vector_ND), vector_ND.any(1)
        lift_N, typical_N = self._clusters.lift_C[code_N], self._clusters.typical(vector_ND, code_N)
        return np.where(there_N, lift_N, 0.0), np.where(there_N, typical_N, 0.0)

    def _change(self, rows: "_Rows") -> Floats:
        top_N, highest_N = highest(rows.probability_NL)
        decided_N = pc.index_in(decisive(rows.batch.column("reasons")), self._labels).fill_null(-1).to_numpy()
        action, minutes = rows.batch.column("action"), self._evidence.minutes
        if action.null_count == len(action):
            acted_N = highest_N >= ACTED_FROM
        else:
            acted_N = pc.not_equal(action, ALLOW).fill_null(False).to_numpy(zero_copy_only=False)
        typical = minutes.get(None, 1.0)
        minutes_N = np.array([minutes.get(name, typical) for name in rows.batch.column("content_type").to_pylist()])
        reach_N = np.ones(len(top_N)) if rows.exposure_N is None else rows.exposure_N
        return expected_change(rows.probability_NL, np.where(decided_N >= 0, decided_N, top_N), acted_N, reach_N, minutes_N)


class _Rows(NamedTuple):
    batch: pa.RecordBatch
    probability_NL: Floats
    exposure_N: Floats | None


def score_traffic(
    traffic: Traffic, design: Design, evidence: Evidence, seed: int
) -> tuple[Design, StrategyScores, dict[Strategy, str]]:
    """Prepare the scores of the strategies that a design names.

    Args:
        traffic: the decisions.
        design: a design with ``mined`` purposes.
        evidence: what is known in addition to the traffic.
        seed: seed of the clusters.

    Returns:
        The design without strategies for which something is missing, whose shares the others get; the scores; and what is
        missing, by strategy.

    Raises:
        UserError: if no strategy is left, or embeddings cannot be read.
    """
    wanted = {purpose.strategy for purpose in design.mined}
    missing: dict[Strategy, str] = {}
    if "disagreement" in wanted and evidence.challenger is None:
        missing["disagreement"] = "no other model's decisions; log a shadow's, or give --against"
    embedded = wanted & {"known_errors", "new_clusters", "typical"}
    clusters = anchors_KD = None
    if evidence.embeddings is None and EMBEDDING not in traffic.columns:
        missing |= dict.fromkeys(embedded, f"the traffic has no column {EMBEDDING}; log it, or give --embeddings")
    elif embedded:
        fitted_ND, anchors_KD = _sampled_vectors(traffic, evidence)
        if not len(anchors_KD):
            missing["known_errors"] = "no reviewed errors with an embedding; give --not-in with --reviews"
        if evidence.known is None:
            missing["new_clusters"] = "nothing to compare with; give --known"
        if not len(fitted_ND):
            missing |= dict.fromkeys(embedded, "no decision has an embedding")
        elif wanted & {"new_clusters", "typical"} - missing.keys():
            clusters = Clusters(fitted_ND, evidence.known, seed)
    left = [strategy for strategy in sorted(wanted) if strategy not in missing]
    if not left:
        raise UserError(*(f"{strategy}: {why}" for strategy, why in missing.items()))
    kept = [purpose for purpose in design.purposes if purpose.kind != "mined" or purpose.strategy not in missing]
    scores = StrategyScores(traffic, design.labels or traffic.labels, left, evidence, clusters, anchors_KD)
    named = {strategy: why for strategy, why in missing.items() if strategy in wanted}
    return design.model_copy(update={"purposes": tuple(kept)}), scores, named


def _sampled_vectors(traffic: Traffic, evidence: Evidence) -> tuple[Floats, Floats]:
    """Return unit vectors of about :data:`MAX_FITTED` decisions, chosen by their keys, and those of the known errors."""
    errors, every = pa.array(evidence.errors, pa.string()), max(traffic.rows // MAX_FITTED, 1)
    fitted: list[Floats] = []
    anchors: list[Floats] = []
    for batch in traffic.batches(["id", *_embedding_columns(evidence)]):
        sampled_N = row_keys(batch, 1, timed=False) % np.uint64(every) == 0
        error_N = pc.is_in(batch.column("id"), errors).to_numpy(zero_copy_only=False)
        for rows_N, kept in ((sampled_N, fitted), (error_N, anchors)):
            vector_ND = _vectors(batch.filter(pa.array(rows_N)), evidence, traffic)
            if vector_ND.any():
                kept.append(vector_ND[vector_ND.any(1)])
    fitted_ND, anchors_KD = (np.concatenate(kept) if kept else np.empty((0, 0)) for kept in (fitted, anchors))
    return fitted_ND, anchors_KD


def _embedding_columns(evidence: Evidence) -> tuple[str, ...]:
    return (EMBEDDING,) if evidence.embeddings is None else ()


def _vectors(batch: pa.RecordBatch, evidence: Evidence, traffic: Traffic) -> Floats:
    """Return the unit vector of each row, zeros without one."""
    if evidence.embeddings is not None:
        return evidence.embeddings.of(batch.column("id"))
    return unit_vectors(batch.column(EMBEDDING), str(traffic.path))
