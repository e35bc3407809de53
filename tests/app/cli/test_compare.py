"""`vigil compare` and `vigil export --promote` with tables, runs and bundles, and their exit status."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from vigil import cli
from vigil.cli import compare, export
from vigil.workflows.release_gate import RegressionError
from vigil_data.errors import UserError
from vigil_training.runs.run import Run

QUICK = ("--replicates", "200")


@pytest.fixture(scope="module")
def call():
    app = typer.Typer()
    compare.register(app)
    export.register(app)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "250"})


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """Return a copy of the trained run, for evaluations."""
    return Run(shutil.copytree(trained.path, tmp_path_factory.mktemp("compare") / "run"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Write three models' scores of the same 6,000 items: in use, equally good, and worse in a slice of 2 %."""
    folder, random, items = tmp_path_factory.mktemp("tables"), np.random.default_rng(0), 6000
    language = random.choice(["en", "de", "fi"], items, p=[0.7, 0.28, 0.02])
    positive = random.random(items) < 0.3
    shared = 3.0 * positive - 1.5 + random.normal(size=items)
    base = {"id": [f"item-{i}" for i in range(items)], "language": language.tolist(), "presence": ["text"] * items}
    base["target.hate"] = pa.array(positive.astype(np.float32), mask=random.random(items) < 0.2)
    for name in ("champion", "equal", "worse"):
        scores = shared + 0.3 * random.normal(size=items) - (3.0 if name == "worse" else 0.0) * (positive & (language == "fi"))
        table = pa.table(base | {"probability.hate": (1 / (1 + np.exp(-scores))).astype(np.float32)})
        pq.write_table(table.take(pa.array(random.permutation(items))), folder / f"{name}.parquet")
    return folder


def lines_of(result):
    assert isinstance(result.exception, UserError), result.output
    return result.exception.lines


def test_compare_exits_with_0_1_and_2(tables, tmp_path, monkeypatch, capsys):
    def main(*arguments):
        monkeypatch.setattr("sys.argv", ["vigil", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    code, said, errors = main(tables / "champion.parquet", tables / "equal.parquet")
    assert code in (None, 0)
    assert [line for line in errors.splitlines() if not line.startswith("comparing")] == [], "nothing but progress"
    assert said.startswith("pass")
    code, said, errors = main(tables / "champion.parquet", tables / "worse.parquet", "--to", tmp_path / "out")
    assert code == 1
    assert said.startswith("fail")
    first, *reasons = errors.splitlines()
    assert "worse.parquet does not pass against" in first
    assert any(line.startswith("error: recall of hate, language = fi: ") for line in reasons)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.json", "comparison.html", "flips.parquet"}
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    regressed = [cell for cell in found["cells"] if cell["verdict"] == "regression"]
    assert {(cell["column"], cell["value"]) for cell in regressed} == {("language", "fi")}
    assert [f"error: {line}" for line in found["failures"]] == reasons
    flips = pq.read_table(tmp_path / "out" / "flips.parquet")
    assert flips.num_rows == found["flips"]["labels"]["hate"]["items"]
    code, said, errors = main(tables / "champion.parquet", tables / "absent.parquet")
    assert (code, said) == (2, "")
    assert errors == f"error: {tables}/absent.parquet does not exist; name a run, a bundle, or a Parquet file of predictions\n"


def test_compare_refuses_or_excludes_items_of_one_model(call, tables, tmp_path):
    pq.write_table(pq.read_table(tables / "equal.parquet").slice(100), tmp_path / "few.parquet")
    (line,) = lines_of(call("compare", tables / "champion.parquet", tmp_path / "few.parquet", *QUICK))
    assert "100 of the 6000 items" in line
    done = call("compare", tables / "champion.parquet", tmp_path / "few.parquet", "--common", *QUICK)
    assert done.exit_code == 0, done.output
    assert "excluded: 100 items of the champion only, 0 of the challenger only" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "recal"], "no such metric: recal (did you mean recall?)"),
        (["--tolerance", "x"], "--tolerance x: write a number such as 0.01, or METRIC=X such as recall=0.02"),
        (["--tolerance", "recall=-1"], "tolerance of recall -1.0: must be a number of at least 0"),
        (["--require", "nothing"], "--require nothing: write no-regression or non-inferiority"),
        (["--alpha", "2"], "alpha 2.0: must lie between 0 and 1"),
        (["--slices", "langage"], "slices: langage is in neither table; its columns are language, presence"),
        (["--replicates", "10"], "replicates 10: a comparison needs at least 200"),
        (["--confidence", "1.5"], "confidence"),
        (["--data", "nowhere"], "--data nowhere: "),
        (["--challenger-threshold", "hat=0.3"], "no label hat, for which a threshold is given"),
    ],
)
def test_compare_refuses_invalid_arguments_in_one_line(call, tables, arguments, message):
    lines = lines_of(call("compare", tables / "champion.parquet", tables / "equal.parquet", *arguments))
    assert len(lines) == 1
    assert message in lines[0]


def test_compare_applies_its_options(call, tables, tmp_path):
    done = call(
        *("compare", tables / "champion.parquet", tables / "worse.parquet", "--metrics", "recall,f1", "--slices", "presence"),
        *("--tolerance", "0.5", "--tolerance", "f1=0.3", "--alpha", "0.01", "--confidence", "0.9", "--enough", "7"),
        *("--challenger-threshold", "hate=0.4", "--to", tmp_path / "out", *QUICK),
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["tolerance"] == {"recall": 0.5, "f1": 0.3}
    assert [found[name] for name in ("alpha", "confidence", "enough", "replicates")] == [0.01, 0.9, 7, 200]
    assert {cell["column"] for cell in found["cells"]} == {None}
    assert found["champion"]["thresholds"] == {"hate": 0.5}
    assert found["challenger"]["thresholds"] == {"hate": 0.4}


def test_compare_accepts_runs_and_tables(call, run, tmp_path):
    from vigil.workflows.prediction_sources import load_predictions

    elsewhere = Run(shutil.copytree(run.path, tmp_path / "elsewhere"))
    facts = elsewhere.read_environment()
    facts["dataset"]["path"] = "/gone"
    elsewhere.environment.write_text(json.dumps(facts))
    pq.write_table(load_predictions(run.path).table, tmp_path / "scores.parquet")
    cuts = [f"--champion-threshold={label}={value}" for label, value in run.read_thresholds().items()]
    for champion, kind, options in (
        (run.path, "run", []),
        (elsewhere.path, "run", []),
        (tmp_path / "scores.parquet", "table", cuts),
    ):
        done = call("compare", champion, run.path, "--to", tmp_path / "out", *options)
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert (found["champion"]["kind"], found["challenger"]["kind"]) == (kind, "run")
        assert found["champion"]["thresholds"] == run.read_thresholds()
        assert found["alignment"]["items"] == 40
        assert found["tested"] == 0
    assert (
        "has its own calibration and thresholds"
        in lines_of(call("compare", run.path, run.path, "--champion-threshold", "cat=0.3"))[0]
    )
    assert "/gone" in lines_of(call("compare", run.path, elsewhere.path))[0]


def test_export_promote_refuses_a_regression(call, run, tmp_path):
    from vigil.workflows.prediction_sources import load_predictions
    from vigil_serving.bundle.load import load_bundle

    table = load_predictions(run.path).table
    perfect = table
    for label in ("cat", "bright"):
        targets = table.column(f"target.{label}").to_numpy(zero_copy_only=False).astype(float)
        sure = pa.array(np.where(np.isnan(targets), 0.5, 0.02 + 0.96 * targets), pa.float32())
        perfect = perfect.set_column(perfect.column_names.index(f"probability.{label}"), f"probability.{label}", sure)
    reversed_ = perfect
    for label in ("cat", "bright"):
        turned = pa.array(1 - perfect.column(f"probability.{label}").to_numpy(), pa.float32())
        reversed_ = reversed_.set_column(perfect.column_names.index(f"probability.{label}"), f"probability.{label}", turned)
    pq.write_table(perfect, tmp_path / "perfect.parquet")
    pq.write_table(reversed_, tmp_path / "reversed.parquet")
    refused = call("export", run.path, "--to", tmp_path / "bundle", "--promote", tmp_path / "perfect.parquet")
    assert isinstance(refused.exception, RegressionError), refused.output
    assert refused.exception.status == 1
    assert not (tmp_path / "bundle").exists()
    done = call("export", run.path, "--to", tmp_path / "bundle", "--promote", tmp_path / "reversed.parquet")
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "bundle" / "comparison.json").read_text())
    assert kept["passed"] is True
    assert kept["flips"]["top"] == []
    assert load_bundle(tmp_path / "bundle", check_hashes=False).metadata.labels == ("cat", "bright")
    # The bundle is the champion now: the run that it was exported from passes.
    again = call("compare", tmp_path / "bundle", run.path, *QUICK, "--to", tmp_path / "again")
    facts = json.loads((tmp_path / "again" / "comparison.json").read_text())["champion"]["facts"]
    assert facts["digest"] == load_bundle(tmp_path / "bundle").digest  # by which `vigil promote` knows the champion
    assert again.exit_code == 0, again.output
    (line,) = lines_of(call("export", run.path, "--to", tmp_path / "b", "--promote", run.path, "--checkpoint", "last"))
    assert "a promotion compares the best checkpoint" in line
    assert "is used only with a promotion" in lines_of(call("export", run.path, "--to", tmp_path / "b", "--data", tmp_path))[0]


def test_compare_calibrates_each_table_on_its_own_scores_of_other_items(call, tables, tmp_path):
    """The challenger ranks as the champion does, but its probabilities are far too close to one half."""
    table = pq.read_table(tables / "champion.parquet")
    probability = table.column("probability.hate").to_numpy().astype(np.float64)
    odds = (probability / (1 - probability)) ** 0.25
    place = table.column_names.index("probability.hate")
    timid = table.set_column(place, "probability.hate", pa.array((odds / (1 + odds)).astype(np.float32)))
    for name, rows in (("champion", table), ("challenger", timid)):
        pq.write_table(rows.slice(0, 3000), tmp_path / f"{name}-validation.parquet")
        pq.write_table(rows.slice(3000), tmp_path / f"{name}.parquet")
    both = ("compare", tmp_path / "champion.parquet", tmp_path / "challenger.parquet", "--to", tmp_path / "out", *QUICK)
    assert isinstance(call(*both).exception, RegressionError)
    own = [f"--{name}-calibrate-on={tmp_path / f'{name}-validation.parquet'}" for name in ("champion", "challenger")]
    done = call(*both, *own)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    for name in ("champion", "challenger"):
        assert found[name]["facts"]["calibrated on"] == "3000 other items"
        assert found[name]["thresholds"]["hate"] != 0.5
    briers = [cell for cell in found["cells"] if cell["metric"] == "brier" and cell["column"] is None]
    assert all(cell["champion"] == pytest.approx(cell["challenger"], abs=0.002) for cell in briers)
    done = call(*both, *own, "--challenger-threshold", "hate=0.9")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["challenger"]["thresholds"] == {"hate": 0.9}
    unlabelled = table.drop_columns(["target.hate"])
    pq.write_table(unlabelled, tmp_path / "unlabelled.parquet")
    (line,) = lines_of(call(*both, "--champion-calibrate-on", tmp_path / "unlabelled.parquet"))
    assert line.endswith("has no known target (column target.LABEL); calibrate on labelled items")


def test_compare_refuses_empty_tables_and_percentages_in_one_line(call, tables, tmp_path):
    pq.write_table(pq.read_table(tables / "equal.parquet").slice(0, 0), tmp_path / "empty.parquet")
    (line,) = lines_of(call("compare", tables / "champion.parquet", tmp_path / "empty.parquet"))
    assert line == f"{tmp_path}/empty.parquet: the table has no rows, so there is nothing to evaluate"
    for arguments, hint in (
        (("--tolerance", "5"), "tolerance 5: a loss of more than 1 is impossible (did you mean 0.05, which is 5 %?)"),
        (("--confidence", "95"), "(did you mean 0.95, which is 95 %?)"),
        (("--challenger-threshold", "hate=70"), "(did you mean 0.7, which is 70 %?)"),
    ):
        (line,) = lines_of(call("compare", tables / "champion.parquet", tables / "equal.parquet", *arguments))
        assert hint in line
