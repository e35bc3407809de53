"""Time and memory of `vigil monitor prevalence` and `vigil monitor metrics`: one pass over all traffic, and every estimate.

usage: python benchmarks/monitor_estimates.py [--rows 1000000] [--labels 4] [--budget 1000]

The traffic is written first, as a log of seven days; only the estimates are timed. A peer does the least that any estimate needs:
pyarrow's grouped sums of the same columns. Peak memory is that of the process, less what it had before.

Last table (AMD EPYC, 2 virtual cores, one used, machine busy):

    10,000,000 decisions, 4 labels, 2,307 reviewed; slices by language, content_type, day, action
                                        seconds  estimates  peak MiB
    grouped sums of pyarrow                 4.7                   35
    prevalence: reading and sums           14.3
    prevalence: all                        14.7        180        55
    metrics: reading and sums              20.8
    metrics: all                           23.5      1,568        84
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vigil_monitoring.estimates.inputs import EstimationOptions, read_inputs
from vigil_monitoring.estimates.online_metrics import estimate_metrics
from vigil_monitoring.estimates.prevalence import estimate_prevalence
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, write_queue
from vigil_monitoring.traffic.reader import decisive, open_traffic

BY = ("language", "content_type", "day", "action")
DAYS, ROW_GROUP = 7, 65_536
ACTIONS = np.array(["allow", "label", "remove"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--labels", type=int, default=4)
    parser.add_argument("--budget", type=int, default=1000)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    labels = [f"label-{n}" for n in range(options.labels)]
    with tempfile.TemporaryDirectory() as folder:
        rows = write_traffic(Path(folder), options.rows, labels, options.budget)
        before = peak_mib()
        print(f"{options.rows:,} decisions, {options.labels} labels, {rows:,} reviewed; slices by {', '.join(BY)}")
        print(f"{'':34}{'seconds':>9}{'estimates':>11}{'peak MiB':>10}")
        start = time.perf_counter()
        grouped_sums(Path(folder) / "traffic", labels)
        print(
            f"{'grouped sums of pyarrow':34}{time.perf_counter() - start:>9.1f}{'':>11}{peak_mib() - before:>10.0f}", flush=True
        )
        for name, reasons, estimator in (("prevalence", False, estimate_prevalence), ("metrics", True, estimate_metrics)):
            start = time.perf_counter()
            files = (Path(folder) / "traffic", Path(folder) / "queue.jsonl", [Path(folder) / "reviews.jsonl"])
            found = read_inputs(*files, EstimationOptions(by=BY, cluster="author"), reasons=reasons)
            summed = time.perf_counter() - start
            count = sum(1 for _ in estimator(found.reviewed, found.population, found.accuracies))
            taken = time.perf_counter() - start
            print(f"{f'{name}: reading and sums':34}{summed:>9.1f}", flush=True)
            print(f"{f'{name}: all':34}{taken:>9.1f}{count:>11,}{peak_mib() - before:>10.0f}", flush=True)


def peak_mib() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_traffic(folder: Path, rows: int, labels: list[str], budget: int) -> int:
    """Write a traffic log, a queue that was drawn from it, and its reviews; return the rows of the queue."""
    random = np.random.default_rng(0)
    reviewed: list[dict[str, object]] = []
    lines: list[str] = []
    for day in range(DAYS):
        path = folder / "traffic" / f"day=2026-11-{day + 1:02d}"
        path.mkdir(parents=True)
        count = rows // DAYS + (rows % DAYS if day == 0 else 0)
        with pq.ParquetWriter(path / "part-0.parquet", batch_of(random, 1, day, labels).schema) as writer:
            for first in range(0, count, ROW_GROUP):
                table = batch_of(random, min(ROW_GROUP, count - first), day, labels)
                writer.write_table(table)
                draw(random, table, rows, budget, labels, reviewed, lines)
    record = QueueRecord("probability", tuple(labels), start="2026-11-01", end="2026-11-07", items=rows)
    write_queue(folder / "queue.jsonl", Queue(queue_table(reviewed, labels), record))
    (folder / "reviews.jsonl").write_text("".join(lines))
    return len(reviewed)


def batch_of(random: np.random.Generator, count: int, day: int, labels: list[str]) -> pa.Table:
    """Return decisions of a day."""
    scores_NL = 1 / (1 + np.exp(-random.normal(-5, 2.5, (count, len(labels)))))
    highest_N, first_N = scores_NL.max(axis=1), scores_NL.argmax(axis=1)
    action_N = (highest_N > 0.3).astype(int) + (highest_N > 0.7)
    reasons = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(action_N > 0)]).astype(np.int32),
        pa.StructArray.from_arrays(
            [
                pa.array(labels).take(pa.array(first_N[action_N > 0])),
                pa.array(ACTIONS).take(pa.array(action_N[action_N > 0])),
                pa.array(highest_N[action_N > 0]),
                pa.array(np.full(int((action_N > 0).sum()), 0.3)),
            ],
            names=["label", "action", "probability", "threshold"],
        ),
    )
    start = np.datetime64("2026-11-01") + day
    times_N = start.astype("datetime64[us]").astype(np.int64) + random.integers(0, 86_400_000_000, count)
    return pa.table(
        {
            "id": pa.array([f"{n:016x}" for n in random.integers(0, 2**60, count).tolist()]),
            "time": pa.array(times_N, pa.timestamp("us", tz="UTC")),
            "role": pa.repeat("live", count),
            "content_type": pa.array(["post", "comment", "message"]).take(pa.array(random.integers(0, 3, count))),
            "language": pa.array(["en", "de", "ar", "hi"]).take(pa.array(random.integers(0, 4, count))),
            "author": pa.array([f"author-{n}" for n in random.integers(0, 10**6, count).tolist()]),
            "exposure": np.exp(random.normal(3, 1.5, count)),
            **{f"probability.{label}": scores_NL[:, n].astype(np.float32) for n, label in enumerate(labels)},
            "action": pa.array(ACTIONS).take(pa.array(action_N)),
            "review": action_N == 1,
            "reasons": reasons,
            "policy": pa.repeat("house 3", count),
        }
    )


def draw(
    random: np.random.Generator,
    table: pa.Table,
    rows: int,
    budget: int,
    labels: list[str],
    reviewed: list[dict[str, object]],
    lines: list[str],
) -> None:
    """Add drawn rows and reviewers' answers, by the scores as probabilities."""
    scores_NL = np.stack([table[f"probability.{label}"].to_numpy() for label in labels], axis=1)
    probability_N = np.minimum(budget / rows * (0.3 + 6 * np.sqrt(scores_NL.max(axis=1))), 1.0)
    rows_n = np.flatnonzero(random.random(len(probability_N)) < probability_N)
    kept = table.append_column("decisive", decisive(table["reasons"])).drop_columns(["reasons", "role"]).take(rows_n)
    for row, n in zip(kept.to_pylist(), rows_n.tolist(), strict=True):
        of = {"inclusion_probability": float(probability_N[n]), "purpose": "estimate", "ask": labels, "stratum": "all"}
        reviewed.append({**row, **of})
        for column, label in enumerate(labels):
            value = int(random.random() < scores_NL[n, column])
            answer = {"id": row["id"], "label": label, "value": value, "reviewer": "ann", "time": "2026-11-09T00:00:00Z"}
            lines.append(f"{json.dumps(answer)}\n")


def grouped_sums(traffic: Path, labels: list[str]) -> None:
    """Sum probabilities by slice, as the least that an estimate needs."""
    opened = open_traffic(traffic)
    columns = ["language", "content_type", "action", "exposure", *(f"probability.{label}" for label in labels)]
    for batch in opened.batches(columns):
        table = pa.table(batch)
        for by in ("language", "content_type", "action"):
            table.group_by(by, use_threads=False).aggregate([(name, "sum") for name in columns[3:]])


if __name__ == "__main__":
    main()
