"""`vigil monitor drift` prints alarms in sentences, writes a result, and exits with 1 only where asked to."""

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_traffic import days_of, simulate_traffic
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.errors import UserError
from vigil_monitoring.drift import DriftResults
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, write_queue
from vigil_monitoring.results import read_results

START, LABELS = date(2026, 9, 7), ("hate", "spam")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traffic of 32 days in a log, whose last ten have more positives."""
    usual, _ = simulate_traffic(11_000, 3, days=22, start=START, prevalence=0.05)
    later, _ = simulate_traffic(5000, 4, days=10, start=START + timedelta(days=22), prevalence=0.15)
    later = later.set_column(0, "id", pa.array([f"late-{n}" for n in range(later.num_rows)]))
    folder = tmp_path_factory.mktemp("log")
    for day, rows in days_of(pa.concat_tables([usual, later])).items():
        (folder / f"day={day}").mkdir()
        pq.write_table(rows, folder / f"day={day}" / "part-0.parquet")
    return folder


def drift(folder: Path, *options: str, status: int = 0) -> str:
    arguments = ["monitor", "drift", str(folder), "--reference", "2026-09-07..2026-09-27", *options]
    done = CliRunner().invoke(build(), arguments, catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == status
    return " ".join(done.output.split())


def test_drift_prints_alarms_and_writes_a_result(log: Path, tmp_path: Path) -> None:
    first = drift(log, "--to", str(tmp_path / "drift.json"))
    assert "10 days (2026-09-28 to 2026-10-07), 4,967 decisions" in first
    assert "alarm [score] all: " in first
    assert "since 2026-09-29, alarm on " in first
    assert "examples: late-" in first
    [result] = read_results(tmp_path)
    read = result.read(DriftResults)
    assert (result.kind, str(result.period)) == ("drift", "2026-09-28 to 2026-10-07")
    assert {alarm.label for alarm in read.alarms if alarm.kind == "score"} == set(LABELS)
    assert [row.slice for row in read.label_shift] == ["all", "all"]
    # The summaries next to the log give the same answer.
    assert len(list((log / ".drift").iterdir())) == 31
    assert drift(log, "--to", str(tmp_path / "drift.json")) == first
    assert "alarm [score] all: " in drift(log, "--fail-on-alarm", "--cache", str(tmp_path / "cache"), status=1)
    assert len(list((tmp_path / "cache").iterdir())) == 31


def test_drift_without_alarms(log: Path) -> None:
    assert drift(log, "--until", "2026-09-28", "--fail-on-alarm").endswith("no drift")


def test_drift_tests_calibration_where_reviews_exist(log: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    table = pa.concat_tables(pq.read_table(file, partitioning=None) for file in sorted(log.glob("day=2026-10-0[1-5]/*.parquet")))
    drawn = table.take(np.flatnonzero(random.random(table.num_rows) < 0.3))
    keep = ["id", "time", "author", "language", *(f"probability.{label}" for label in LABELS)]
    rows = [
        {**row, "inclusion_probability": 0.3, "purpose": "estimate", "ask": ["hate"]} for row in drawn.select(keep).to_pylist()
    ]
    write_queue(tmp_path / "queue.jsonl", Queue(queue_table(rows, LABELS), QueueRecord("probability", LABELS)))
    with (tmp_path / "reviews.jsonl").open("w") as file:
        for row in rows:  # Three times as many positives as the probabilities state.
            value = int(random.random() < 3 * row["probability.hate"])
            answer = {"id": row["id"], "label": "hate", "value": value, "reviewer": "ann", "time": "2026-11-09T10:00:00Z"}
            file.write(json.dumps(answer) + "\n")
    pair = ("--queue", str(tmp_path / "queue.jsonl"), "--reviews", str(tmp_path / "reviews.jsonl"))
    drift(log, *pair, "--to", str(tmp_path / "results" / "drift.json"))
    [alarm] = [a for a in read_results(tmp_path / "results")[0].read(DriftResults).alarms if a.kind == "calibration"]
    assert (alarm.label, alarm.slice, len(alarm.examples)) == ("hate", "all", 20)
    assert 1.5 < alarm.now < 4
    assert f"all: {alarm.now:.2f} positives of hate for each that the probabilities state" in alarm.sentence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", "hour"), "--window hour: must be day or week"),
        (("--until", "tomorrow"), "--until tomorrow: must be a day such as 2026-11-29"),
        (("--smallest", "0.5"), "smallest 0.5: must be a factor above 1"),
        (("--queue", "queue.jsonl"), "1 --queue and 0 --reviews: give each queue the file of its decisions"),
        (("--by", "colour"), "has no column colour"),
    ],
)
def test_drift_refuses(log: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        drift(log, *options)
