"""Mining of traffic: exact inclusion probabilities, evidence from reviews, strategies that lack something."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vigil_data.errors import UserError
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.mining.embeddings import read_embeddings
from vigil_monitoring.mining.scores import Evidence, reviewed_evidence, score_traffic
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table
from vigil_monitoring.sampling.design import Design
from vigil_monitoring.sampling.draw import draw
from vigil_monitoring.sampling.pairs import Challenger
from vigil_monitoring.traffic.reader import open_traffic

NOW = datetime(2026, 11, 9, tzinfo=UTC)
Write = Callable[..., Path]


def design(*strategies: str, **keys: Any) -> Design:
    purposes = [{"kind": "mined", "strategy": name} for name in strategies]
    return Design.model_validate({"purposes": purposes, "floor": 0, "audit": 0.2, **keys})


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str = "traffic", **columns: Any) -> Path:
        random = np.random.default_rng(0)
        table = {"id": [f"{n}" for n in range(400)], "probability.hate": random.beta(0.3, 2, 400).astype(np.float32)}
        pq.write_table(pa.table(table | columns), tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    return write


def test_mining_keeps_exact_inclusion_probabilities(write: Write) -> None:
    traffic = open_traffic(write())
    probability_N = np.array(traffic.table(["probability.hate"])["probability.hate"], np.float64)
    truth_N = np.random.default_rng(1).random(400) < probability_N
    chosen, scores, _ = score_traffic(traffic, design("uncertainty", "relevance"), Evidence(), 0)
    drawn_N, totals, audits, stated_N = np.zeros(400), [], [], np.full(400, np.nan)
    repetitions = 60
    for seed in range(repetitions):
        table = draw(traffic, chosen, 40, seed, scores=scores).queue.table
        row_K, probability_K = table["id"].to_numpy().astype(int), table["inclusion_probability"].to_numpy()
        assert len(row_K) == 40
        drawn_N[row_K] += 1
        stated_N[row_K] = probability_K
        totals.append((truth_N[row_K] / probability_K).sum())
        audits.append(truth_N[row_K][table["purpose"].to_numpy() == "audit"])
    error = np.std(totals, ddof=1) / np.sqrt(repetitions)
    assert np.mean(totals) == pytest.approx(truth_N.sum(), abs=4 * error)
    audit = np.concatenate(audits)
    assert audit.mean() == pytest.approx(truth_N.mean(), abs=4 * audit.std() / np.sqrt(len(audit)))
    seen = ~np.isnan(stated_N)
    deviation = (drawn_N - repetitions * stated_N)[seen] / np.sqrt(repetitions * stated_N * (1.001 - stated_N))[seen]
    assert np.abs(deviation).max() < 5
    uncertain = np.abs(probability_N - 0.5) < 0.1
    assert stated_N[uncertain & seen].mean() > 4 * stated_N[(probability_N < 0.05) & seen].mean()


def test_score_traffic_leaves_out_strategies_that_lack_something(write: Write) -> None:
    traffic = open_traffic(write())
    every = design("uncertainty", "disagreement", "known_errors", "new_clusters", "typical")
    chosen, _, missing = score_traffic(traffic, every, Evidence(), 0)
    assert [of.strategy for of in chosen.mined] == ["uncertainty"]
    assert set(missing) == {"disagreement", "known_errors", "new_clusters", "typical"}
    assert missing["typical"] == "the traffic has no column embedding; log it, or give --embeddings"
    with pytest.raises(UserError, match="disagreement: no other model's decisions"):
        score_traffic(traffic, design("disagreement"), Evidence(), 0)


def test_score_traffic_prefers_near_duplicates_of_errors_new_clusters_and_disagreement(write: Write, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    group_N = np.repeat([0, 1, 2], [300, 80, 20])
    vectors = np.eye(3)[group_N] + 0.05 * random.normal(size=(400, 3))
    known = np.eye(3)[np.repeat([0, 1], 200)] + 0.05 * random.normal(size=(400, 3))
    labels = [["hate"] if n < 30 else [] for n in range(400)]
    own = open_traffic(write(embedding=vectors.tolist(), labels=labels))
    other = open_traffic(write("other", labels=[[]] * 400))
    pq.write_table(pa.table({"id": own.table(["id"])["id"], "embedding": vectors.tolist()}), tmp_path / "embeddings.parquet")
    for embeddings in (None, read_embeddings(tmp_path / "embeddings.parquet")):
        evidence = Evidence(embeddings=embeddings, known=known, errors=("310",), challenger=Challenger(other))
        _, scores, missing = score_traffic(own, design("known_errors", "new_clusters", "disagreement", "typical"), evidence, 0)
        assert missing == {}
        batch = next(iter(own.batches([*scores.columns, "probability.hate"])))
        found = scores.of(batch, np.zeros((400, 1)), None)
        assert found["known_errors"][group_N == 1].min() > 0.7 > found["known_errors"][group_N != 1].max()
        assert found["new_clusters"][group_N == 2].min() > found["new_clusters"][group_N != 2].max()
        assert found["disagreement"].tolist() == [1.0] * 30 + [0.0] * 370
        assert found["typical"][group_N == 2].mean() > 1.5 * found["typical"][group_N == 0].mean()


def test_reviewed_evidence_finds_contradicted_and_disputed_items_and_minutes() -> None:
    rows = [
        {"id": f"{n}", "purpose": "estimate", "inclusion_probability": 0.5, "ask": ["hate"], "probability.hate": p} | more
        for n, (p, more) in enumerate([(0.9, {"content_type": "post"}), (0.9, {}), (0.1, {}), (0.2, {})])
    ]
    queue = Queue(queue_table(rows, ["hate"]), QueueRecord("probability", ("hate",)))
    answers = [
        ("0", "ann", 0.0, 2.0),
        ("1", "ann", 1.0, 0.5),
        ("2", "ann", 0.0, 1.0),
        ("2", "ben", 1.0, 1.5),
        ("3", "ann", None, None),
    ]
    decisions = [Decision(id_, "hate", value, who, NOW, minutes=minutes) for id_, who, value, minutes in answers]
    errors, minutes = reviewed_evidence([(queue, decisions)])
    assert errors == ("0", "2")
    assert minutes == {"post": 2.0, None: 1.25}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0, 2.0], [1.0]], "embedding must have finite numbers, as many in each row"),
        ([[1.0, float("nan")]] * 2, "embedding must have finite numbers"),
        (["a", "b"], "embedding is string, not a list of numbers"),
    ],
)
def test_read_embeddings_refuses(tmp_path: Path, column: list[Any], message: str) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": column}), tmp_path / "e.parquet")
    with pytest.raises(UserError, match=message):
        read_embeddings(tmp_path / "e.parquet")
