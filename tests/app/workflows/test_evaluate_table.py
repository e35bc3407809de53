"""`vigil evaluate --predictions`: any model's scores, without a run and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from vigil.cli import evaluate
from vigil_data.errors import UserError


@pytest.fixture(scope="module")
def app():
    made = typer.Typer()
    evaluate.register(made)
    return made


def scores(rows: int, seed: int) -> pa.Table:
    """Two labels, a third of the targets unknown; probabilities are overconfident."""
    random = np.random.default_rng(seed)
    columns = {"id": [f"{seed}-{i}" for i in range(rows)]}
    for label, share in (("tobacco", 0.3), ("scam", 0.1)):
        logit = random.normal(np.log(share / (1 - share)), 1.5, rows)
        target = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(float)
        columns[f"target.{label}"] = pa.array(target, mask=random.random(rows) < 1 / 3)
        columns[f"probability.{label}"] = 1 / (1 + np.exp(-3 * logit))
    columns["language"] = random.choice(["de", "en"], rows).tolist()
    return pa.table(columns)


@pytest.fixture
def files(tmp_path):
    for name, rows, seed in (("test", 600, 1), ("calibration", 900, 2)):
        pq.write_table(scores(rows, seed), tmp_path / f"{name}.parquet")
    return tmp_path


def call(app, *arguments):
    return CliRunner().invoke(app, ["evaluate", *[str(argument) for argument in arguments]])


def test_evaluate_table_writes_the_metrics_of_a_table(app, files):
    done = call(app, "--predictions", files / "test.parquet", "--to", files / "out", "--by", "language", "--replicates", 50)
    assert done.exit_code == 0, done.output
    assert {path.name for path in (files / "out").iterdir()} == {"predictions.parquet", "metrics.json", "report.html"}
    found = json.loads((files / "out" / "metrics.json").read_text())
    table = pq.read_table(files / "test.parquet")
    target, probability = (table.column(f"{kind}.scam").to_numpy(zero_copy_only=False) for kind in ("target", "probability"))
    known = ~np.isnan(target)
    numbers = found["overall"]["labels"]["scam"]
    assert numbers["known"] == known.sum()
    assert numbers["average_precision"] == pytest.approx(average_precision_score(target[known], probability[known]), abs=1e-6)
    low, high = numbers["intervals"]["average_precision"]
    assert low < numbers["average_precision"] < high
    assert [breakdown["column"] for breakdown in found["by"]] == ["language"]


def test_evaluate_table_calibrates_and_chooses_thresholds_on_another_table(app, files):
    plain = call(app, "--predictions", files / "test.parquet", "--to", files / "plain", "--replicates", 0)
    assert plain.exit_code == 0, plain.output
    done = call(
        app,
        *("--predictions", files / "test.parquet", "--to", files / "out", "--replicates", 0),
        *("--calibrate-on", files / "calibration.parquet"),
    )
    assert done.exit_code == 0, done.output
    before, after = (json.loads((files / name / "metrics.json").read_text())["overall"]["labels"] for name in ("plain", "out"))
    for label in ("tobacco", "scam"):
        assert after[label]["log_loss"] < before[label]["log_loss"]
        assert after[label]["threshold"] != 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a run folder, or a table of scores"),
        (["--predictions", "test.parquet"], "with --to DIR"),
        (["--predictions", "absent.parquet", "--to", "out"], "not a readable Parquet file"),
        (["--predictions", "test.parquet", "--to", "out", "--threshold", "scam"], "write LABEL=P"),
        (["--predictions", "test.parquet", "--to", "out", "--threshold", "sacm=0.5"], "sacm are no labels of the table"),
        (["--predictions", "test.parquet", "--to", "out", "--settings", "settings.yaml"], "settings.yaml:1: slice: is not a key"),
        (["runs/x", "--to", "out"], "only with --predictions"),
    ],
)
def test_evaluate_table_reports_mistakes_as_user_errors(app, files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    (files / "settings.yaml").write_text("slice: [language]\n")
    done = call(app, *arguments)
    assert isinstance(done.exception, UserError), done.output
    assert message in str(done.exception)


def test_evaluate_table_imports_no_torch(files):
    program = """
import sys
import typer
from vigil.cli import evaluate
app = typer.Typer()
evaluate.register(app)
app(["evaluate", *sys.argv[1:]], standalone_mode=False)
loaded = {"torch", "transformers", "timm", "lightning", "wandb"} & set(sys.modules)
assert not loaded, loaded
"""
    command = [sys.executable, "-c", program, "--predictions", files / "test.parquet", "--to", files / "out", "--replicates", "0"]
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_evaluate_table_keeps_the_older_predictions_when_killed_while_writing(app, files, monkeypatch):
    arguments = ("--predictions", files / "test.parquet", "--to", files / "out", "--replicates", 0)
    assert call(app, *arguments).exit_code == 0
    before = (files / "out" / "predictions.parquet").read_bytes()

    def killed(table, where, **_):
        Path(where).write_bytes(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    assert call(app, *arguments).exit_code != 0
    assert (files / "out" / "predictions.parquet").read_bytes() == before
    assert {path.name for path in (files / "out").iterdir()} == {"predictions.parquet", "metrics.json", "report.html"}
