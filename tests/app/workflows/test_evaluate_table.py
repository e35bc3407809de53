"""`vigil evaluate --predictions`: any model's scores, without a run and without torch."""

import html
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from vigil.cli import evaluate
from vigil.workflows.policies import compile_policy
from vigil_data.errors import UserError
from vigil_serving.runtime.decisions import Decision
from vigil_serving.scoring.output_schema import decisions_table


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


def without_targets(table: pa.Table) -> pa.Table:
    return table.select([name for name in table.column_names if not name.startswith("target.")])


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
        (["--predictions", "absent.parquet", "--to", "out"], "absent.parquet does not exist"),
        (["--predictions", "test.parquet", "--to", "out", "--threshold", "scam"], "write LABEL=P"),
        (["--predictions", "test.parquet", "--to", "out", "--threshold", "scam=80.0"], "(did you mean 0.8, which is 80 %?)"),
        (
            ["--predictions", "test.parquet", "--to", "out", "--settings", "percent.yaml"],
            "not 90 (did you mean 0.9, which is 90 %?)",
        ),
        (["--predictions", "empty.parquet", "--to", "out"], "empty.parquet: the table has no rows"),
        (["--predictions", "test.parquet", "--to", "out", "--calibrate-on", "unlabelled.parquet"], "calibrate on labelled items"),
        (["--predictions", "test.parquet", "--to", "out", "--policy", "test.parquet"], "not a compiled policy"),
        (
            ["--predictions", "test.parquet", "--to", "out", "--threshold", "sacm=0.5"],
            "test.parquet: no label sacm, for which a threshold is given",
        ),
        (
            ["--predictions", "test.parquet", "--to", "out", "--settings", "settings.yaml"],
            "settings.yaml:1: slice: is not a key of an evaluation block (did you mean slices?)",
        ),
        (["runs/x", "--calibrate-on", "test.parquet"], "only with --predictions"),
    ],
)
def test_evaluate_table_reports_mistakes_as_user_errors(app, files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    (files / "settings.yaml").write_text("slice: [language]\n")
    (files / "percent.yaml").write_text("precision: 90\n")
    pq.write_table(scores(0, 3), files / "empty.parquet")
    pq.write_table(without_targets(scores(50, 3)), files / "unlabelled.parquet")
    done = call(app, *arguments)
    assert isinstance(done.exception, UserError), done.output
    assert message in str(done.exception)


POLICY = """
name: forum
confidence: 80 %
actions:
  review: {must: [at most 60 % of traffic, recall at least 20 %]}
  remove: {must: [precision at least 60 %]}
labels: {tobacco: [remove, review]}
"""


@pytest.fixture
def policy(files):
    (files / "policy.yaml").write_text(POLICY)
    return compile_policy(files / "policy.yaml", files / "calibration.parquet", to=files / "policy.json").policy


def test_evaluate_table_measures_the_constraints_of_a_policy_on_foreign_scores(app, files, policy):
    done = call(
        app,
        *("--predictions", files / "test.parquet", "--to", files / "out", "--replicates", 50),
        *("--policy", files / "policy.json"),
    )
    assert done.exit_code == 0, done.output
    table = pq.read_table(files / "test.parquet")
    cut = policy.thresholds()["tobacco"]["remove"]
    target, probability = (table.column(f"{kind}.tobacco").to_numpy(zero_copy_only=False) for kind in ("target", "probability"))
    removed = (probability.astype(np.float32) >= np.float32(cut)) & ~np.isnan(target)
    found = json.loads((files / "out" / "metrics.json").read_text())["policy"]
    precision = next(one for one in found["constraints"] if one["rule"]["metric"] == "precision")
    assert (precision["count"], precision["rows"]) == ((target[removed] == 1).sum(), removed.sum())
    assert precision["bound"] == pytest.approx(binomtest(precision["count"], precision["rows"]).proportion_ci(0.6).low)
    assert "precision at least 60 %" in done.output
    assert f"{precision['count']:,} / {precision['rows']:,}" in done.output
    assert "actions: allow " in done.output
    report = (files / "out" / "report.html").read_text()
    assert f"{precision['count']:,} of {precision['rows']:,}" in report
    other = pq.read_table(files / "test.parquet").drop_columns(["probability.tobacco"])
    pq.write_table(other, files / "other.parquet")
    done = call(app, "--predictions", files / "other.parquet", "--to", files / "out", "--policy", files / "policy.json")
    assert "has no column probability.tobacco, and the policy forum acts on tobacco" in str(done.exception)


def test_evaluate_table_without_targets_has_volumes_actions_and_drift(app, files, policy):
    """Scores as `vigil score` writes them: one item could not be decoded, and the traffic has drifted."""
    table = scores(600, 1)
    bundle = SimpleNamespace(
        metadata=SimpleNamespace(labels=("tobacco", "scam")), policy=policy, prompt=None, spans=(), digest="0" * 64
    )
    probabilities = {k: np.sqrt(table.column(f"probability.{k}").to_numpy()) for k in bundle.metadata.labels}
    decisions = [
        Decision(
            id=f"item-{i}",
            probabilities={k: float(values[i]) for k, values in probabilities.items()} if i else {},
            labels=(),
            action="allow",
            review=False,
            reasons=(),
            evidence=(),
            presence="text",
            cut=0,
            error=None if i else "image 1: truncated",
        )
        for i in range(600)
    ]
    pq.write_table(decisions_table(decisions, bundle), files / "scored.parquet")
    done = call(
        app,
        *("--predictions", files / "scored.parquet", "--to", files / "out", "--replicates", 100),
        *("--policy", files / "policy.json", "--calibrate-on", files / "calibration.parquet"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads((files / "out" / "metrics.json").read_text())
    assert (found["facts"]["items"], found["facts"]["undecodable"]) == ("599", "1")
    assert found["overall"]["judged"] == 0
    assert found["overall"]["labels"]["scam"]["average_precision"] is None
    written = pq.read_table(files / "out" / "predictions.parquet")
    for label, numbers in found["overall"]["labels"].items():
        flagged = written.column(f"probability.{label}").to_numpy() >= np.float32(numbers["threshold"])
        share = found["volumes"]["overall"]["labels"][label]
        assert share["value"] == pytest.approx(flagged.mean())
        assert share["interval"][0] < share["value"] < share["interval"][1]
    assert sum(action["items"] for action in found["policy"]["actions"]) == 599
    assert len(found["conformal"]["drift"]["labels"]) == 2
    assert any("have drifted from the calibration split" in warning for warning in found["conformal"]["warnings"])
    assert "No item has a known target" in done.output
    assert "have drifted from the calibration split" in " ".join(done.output.split())
    report = (files / "out" / "report.html").read_text()
    assert "nothing is labelled" in report
    assert 'id="volumes"' in report
    assert 'id="curves"' not in report


def test_evaluate_table_warns_once_for_each_label_whose_labelled_items_are_not_random(app, files):
    table = scores(3000, 4)
    score, random = table.column("probability.tobacco").to_numpy(), np.random.default_rng(5)
    for name in ("target.tobacco", "target.scam"):
        known = (score > 0.5) | (random.random(3000) < 0.1)
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(table.column(name).to_pylist(), mask=~known))
    pq.write_table(table, files / "biased.parquet")
    done = call(app, "--predictions", files / "biased.parquet", "--to", files / "out", "--replicates", 0)
    assert done.exit_code == 0, done.output
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.split(": ")[1] for line in warnings[:-1]] == ["label tobacco", "label scam"]
    assert warnings[-1].endswith("add the column inclusion_probability (docs/metrics.md)")
    assert "The labelled items are not a random sample</h2>" in (files / "out" / "report.html").read_text()
    assert "weighted" not in done.output
    stated = table.append_column("inclusion_probability", pa.array(np.where(score > 0.5, 1.0, 0.1)))
    pq.write_table(stated, files / "stated.parquet")
    done = call(app, "--predictions", files / "stated.parquet", "--to", files / "out", "--replicates", 0)
    assert "items are weighted by the sampling columns" in " ".join(done.output.split())
    (files / "policy.yaml").write_text(POLICY)
    policy = compile_policy(files / "policy.yaml", files / "biased.parquet", to=files / "policy.json", assume_random=True).policy
    assert policy.notes
    done = call(
        app, "--predictions", files / "test.parquet", "--to", files / "out", "--replicates", 0, "--policy", files / "policy.json"
    )
    for note in policy.notes:
        assert note in " ".join(done.output.split())
        assert html.escape(note) in (files / "out" / "report.html").read_text()
    done = call(app, "--predictions", files / "test.parquet", "--to", files / "out", "--replicates", 0)
    assert "warning" not in done.stderr


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
