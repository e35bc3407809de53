"""`vigil monitor report`: what it writes and prints, and its messages."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner
from wandb_log import read_parts

from vigil.cli import monitor
from vigil_data.errors import UserError
from vigil_monitoring.drift.results import DriftAlarm, DriftResults, KindResults
from vigil_monitoring.results import Period, write_result

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def call() -> Call:
    app = typer.Typer()
    monitor.register(app)
    return lambda *arguments: CliRunner().invoke(app, ["monitor", *map(str, arguments)], env={"COLUMNS": "250"})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    alarm = DriftAlarm("volume", "all", None, "decisions", 10, 30, "2026-11-02", "2026-11-03", 0.01, [], "Decisions tripled.")
    kinds = [KindResults("volume", 1, 1, [0.01])]
    body = DriftResults("October", "day", ["2026-11-02"], "2026-11-02", [30], 1.25, 0.05, kinds, [alarm], [], [])
    write_result(tmp_path / "results" / "drift.json", "drift", Period(date(2026, 11, 2), date(2026, 11, 2)), asdict(body))
    return tmp_path / "results"


def test_report_writes_page_and_metrics(call: Call, results: Path, tmp_path: Path) -> None:
    rows = {"id": ["a", "b"], "probability.hate": [0.1, 0.9], "action": ["allow", "remove"]}
    pq.write_table(pa.table(rows), tmp_path / "traffic.parquet")
    files = tmp_path / "new" / "report.html", tmp_path / "new" / "vigil.prom"
    done = call("report", results, "--traffic", tmp_path / "traffic.parquet", "--to", files[0], "--prometheus", files[1])
    assert done.exit_code == 0, done.output
    assert "Drift of volume: Decisions tripled.\n" in done.output
    assert all(str(file) in done.output and file.is_file() for file in files)
    assert 'vigil_monitor_decisions{action="remove"} 1.0' in files[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to write: name a page with --to FILE.html"),
        (["--wandb", "team/"], "--wandb team/: must be PROJECT or ENTITY/PROJECT"),
        (["--prometheus", "vigil.txt"], "vigil.txt: the textfile collector reads files that end in .prom"),
        (["--to", "report.html", "--from", "2026-11-01"], "--from and --until choose days of the traffic; add --traffic TRAFFIC"),
    ],
)
def test_report_names_mistakes(call: Call, results: Path, options: list[str], message: str) -> None:
    refused = call("report", results, *options)
    assert isinstance(refused.exception, UserError)
    assert message in str(refused.exception)


def test_report_below_a_file_is_refused(call: Call, results: Path) -> None:
    refused = call("report", results, "--to", results / "drift.json" / "report.html")
    assert isinstance(refused.exception, UserError)
    assert "drift.json cannot be created: File exists" in str(refused.exception)


def test_report_of_a_missing_folder(call: Call, tmp_path: Path) -> None:
    refused = call("report", tmp_path / "absent", "--to", tmp_path / "report.html")
    assert "no such folder; write results into it with --to" in str(refused.exception)


def test_report_adds_the_folder_to_its_tracked_run(call: Call, results: Path, tmp_path: Path) -> None:
    rows = {"id": ["a", "b"], "probability.hate": [0.1, 0.9], "action": ["allow", "remove"], "bundle": ["b" * 64] * 2}
    times = pa.array([f"2026-11-0{day}T10:00:00Z" for day in (1, 2)]).cast(pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({**rows, "time": times}), tmp_path / "traffic.parquet")
    command = ["report", results, "--traffic", tmp_path / "traffic.parquet", "--wandb", "team/watch"]
    first, second = call(*command), call(*command)
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    [part] = read_parts(results)
    assert f"W&B: run {part.id} of watch: " in first.output
    assert " new values in 2 windows, offline (WANDB_MODE is offline)" in first.output
    assert ": 0 new values in 0 windows" in second.output
    assert part.name == f"{tmp_path.name}/results"
    assert part.config["bundles"] == ["b" * 64]
    days = [datetime.fromtimestamp(row["_timestamp"], UTC).day for row in part.history if "volume/decisions" in row]
    assert days == [1, 2]
    assert [row["drift_alarms/volume"] for row in part.history if "drift_alarms/volume" in row] == [0]
