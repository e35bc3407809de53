"""Simulated traffic with a queue that was drawn from it and its reviews, as files: what estimates read."""

import json
from collections.abc import Sequence
from datetime import UTC, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from simulated_traffic import simulate_traffic

from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, write_queue
from vigil_monitoring.traffic.reader import decisive

BANDS = (0.0, 0.003, 0.03, 0.15, 0.3, 0.7, 1.01)
"""Strata: bands of the highest probability, whose upper edges are thresholds of actions."""


class ReviewedTraffic(NamedTuple):
    """Files of a simulation, and its truth ``[N, L]``."""

    traffic: Path
    queue: Path
    reviews: Path
    table: pa.Table
    truth: np.ndarray


def write_reviewed_traffic(
    folder: Path,
    items: int = 20_000,
    budget: int = 600,
    seed: int = 0,
    prevalence: float = 0.02,
    labels: Sequence[str] = ("hate", "spam"),
    sensitivity: float = 1.0,
    specificity: float = 1.0,
    unanswered: float = 0.0,
    gold: int = 0,
) -> ReviewedTraffic:
    """Write ``traffic.parquet``, ``queue.jsonl`` and ``reviews.jsonl`` (and ``gold.jsonl``) into a folder.

    Args:
        folder: the folder.
        items: decisions of a week.
        budget: rows to draw: as many from each band of scores, all of a band that has fewer.
        seed: of everything.
        prevalence: of each label.
        labels: labels.
        sensitivity: of the reviewer.
        specificity: of the reviewer.
        unanswered: share of the rows that get no answer.
        gold: number of items with known truth, half of them positive, in the queue for measuring the reviewer.
    """
    table, truth_NL = simulate_traffic(items, seed, prevalence=prevalence, labels=labels)
    random = np.random.default_rng(seed + 1)
    highest_N = np.max([table[f"probability.{label}"].to_numpy() for label in labels], axis=0)
    band_N = np.digitize(highest_N, BANDS[1:-1])
    rows, probabilities = [], []
    for band in range(len(BANDS) - 1):
        members = np.flatnonzero(band_N == band)
        drawn = random.choice(members, min(budget // (len(BANDS) - 1), len(members)), replace=False)
        rows += drawn.tolist()
        probabilities += [len(drawn) / len(members)] * len(drawn)
    sampled = table.append_column("decisive", decisive(table["reasons"])).take(rows).to_pylist()
    columns = [
        {name: value for name, value in row.items() if name not in ("source", "role", "labels", "reasons", "error")}
        for row in sampled
    ]
    given = [
        {**row, "stratum": f"band {band_N[n]}", "inclusion_probability": p, "purpose": "estimate", "ask": list(labels)}
        for row, n, p in zip(columns, rows, probabilities, strict=True)
    ]
    known = {table["id"][n].as_py(): truth_NL[n] for n in rows}
    truths = {f"gold-{n}": np.full(len(labels), n % 2 == 0) for n in range(gold)}
    given += [{"id": id_, "purpose": "gold", "ask": list(labels)} for id_ in truths]
    record = QueueRecord(
        "probability", tuple(labels), traffic=str(folder / "traffic.parquet"), start="2026-11-01", end="2026-11-07", items=items
    )
    write_queue(folder / "queue.jsonl", Queue(queue_table(given, labels), record))
    lines = []
    for place, (id_, truth_L) in enumerate({**known, **truths}.items()):
        if random.random() < unanswered and id_ not in truths:
            continue
        for label, positive in zip(labels, truth_L, strict=True):
            answer = random.random() < (sensitivity if positive else 1 - specificity)
            moment = table["time"][rows[min(place, len(rows) - 1)]].as_py().astimezone(UTC) + timedelta(hours=6)
            line = {"id": id_, "label": label, "value": int(answer), "reviewer": "ann", "time": moment.isoformat()}
            lines.append({**line, "policy_version": "v1", "minutes": 0.5})
    _write_lines(folder / "reviews.jsonl", lines)
    if gold:
        golden = [
            {"id": id_, "label": label, "value": int(truth_L[n])}
            for id_, truth_L in truths.items()
            for n, label in enumerate(labels)
        ]
        _write_lines(folder / "gold.jsonl", golden)
    pq.write_table(table, folder / "traffic.parquet")
    return ReviewedTraffic(folder / "traffic.parquet", folder / "queue.jsonl", folder / "reviews.jsonl", table, truth_NL)


def _write_lines(file: Path, lines: Sequence[dict[str, object]]) -> None:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
