"""`vigil monitor experiment`: from files to a printed verdict and a result file that others read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_traffic import simulate_traffic
from typer.testing import CliRunner, Result

from vigil.cli import build
from vigil_data.errors import UserError
from vigil_monitoring.experiments.results import ExperimentResult
from vigil_monitoring.queues import Queue, QueueRecord, queue_table, write_queue
from vigil_monitoring.results import read_result

SPEC = """name: comments-2
horizon_days: 7
metrics:
- {metric: violations_left_up, margin: 0.5}
- {metric: review_load, margin: 0.1}
guardrails:
- {metric: review_load, margin: 0.2, by: language}
"""


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(build(), ["monitor", "experiment", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    table, truth_NL = simulate_traffic(1500, 1, prevalence=0.1)
    pq.write_table(table, folder / "live.parquet")
    bundle = table.schema.get_field_index("bundle")
    pq.write_table(table.set_column(bundle, "bundle", pa.array(["c" * 64] * 1500)), folder / "challenger.parquet")
    rows = [{**row, "stratum": "all", "inclusion_probability": 0.2} for row in table.select(["id", "time"]).to_pylist()[::5]]
    asked = [{**row, "purpose": "estimate", "ask": ["hate", "spam"]} for row in rows]
    write_queue(folder / "queue.jsonl", Queue(queue_table(asked, ("hate", "spam")), QueueRecord("probability", ("hate", "spam"))))
    answers = [
        {
            "id": row["id"],
            "label": label,
            "value": int(truth_NL[5 * n, column]),
            "reviewer": "ann",
            "time": "2026-11-20T00:00:00Z",
        }
        for n, row in enumerate(rows)
        for column, label in enumerate(("hate", "spam"))
    ]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(of) + "\n" for of in answers))
    (folder / "experiment.yaml").write_text(SPEC)
    return folder


def test_experiment_prints_a_verdict_and_writes_the_result(files: Path, tmp_path: Path) -> None:
    reviewed = ("--queue", files / "queue.jsonl", "--reviews", files / "reviews.jsonl")
    to = tmp_path / "experiment.json"
    done = call(
        files / "experiment.yaml", files / "live.parquet", "--challenger", files / "challenger.parquet", *reviewed, "--to", to
    )
    assert done.exit_code == 0, done.exception
    read = read_result(to)
    found: ExperimentResult = read.read(ExperimentResult)
    assert (read.kind, found.name, found.with_digest()) == ("experiment", "comments-2", found)
    assert done.output.startswith(f"{found.verdict}  comments-2: {found.reason}\n")
    assert (found.challenger.bundle, found.challenger.reviewed) == ("c" * 64, 300)
    # Both models decide alike: the differences are exactly 0.
    assert [of.difference for of in (*found.metrics, *found.guardrails)] == [0.0] * 5
    assert "review load, language = en" in done.output
    assert f"result: {to}" in done.output


def test_experiment_needs_the_reviews_of_each_queue(files: Path) -> None:
    error = call(files / "experiment.yaml", files / "live.parquet", "--queue", files / "queue.jsonl").exception
    assert isinstance(error, UserError)
    assert str(error) == "--queue is given 1 times and --reviews 0; each queue has a file of its reviews"
