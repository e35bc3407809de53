"""`vigil train` and `vigil evaluate` on a trained run."""

import json
import shutil
import signal
import sys

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from vigil import cli
from vigil.cli import evaluate, train
from vigil_data.errors import UserError
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_training.runs.run import Run


@pytest.fixture(scope="module")
def trained(trained, tmp_path_factory):
    """A copy of the trained run, to which evaluations are added."""
    return Run(shutil.copytree(trained.path, tmp_path_factory.mktemp("evaluated") / "run"))


@pytest.fixture(scope="module")
def app():
    made = typer.Typer()
    train.register(made)
    evaluate.register(made)
    return made


def call(app, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_evaluate_writes_predictions_metrics_and_a_report(app, trained):
    done = call(app, "evaluate", trained.path)
    assert done.exit_code == 0, done.output
    folder = trained.path / "evaluation" / "test"
    assert {path.name for path in folder.iterdir()} == {"predictions.parquet", "metrics.json", "report.html"}
    assert pq.read_table(folder / "predictions.parquet").num_rows == 40
    found = json.loads((folder / "metrics.json").read_text())
    assert found["overall"]["labels"]["bright"]["average_precision"] > 0.9
    assert [group["column"] for group in found["by"]] == ["presence", "language"]
    assert "bright" in done.output
    assert "report.html" in done.output


def test_evaluate_writes_to_another_folder_with_another_policy(app, trained, tmp_path):
    """The same results in DIR as in the run's own folder, which is left alone, and the actions of the named policy."""
    assert call(app, "evaluate", trained.path, "--replicates", 0).exit_code == 0
    own = trained.evaluation("test") / "metrics.json"
    before = own.read_bytes()
    cell = {label: {"review": 0.5} for label in ("cat", "bright")}
    policy = CompiledPolicy("other", 3, ("allow", "review"), ("cat", "bright"), "before", {(None, None): cell})
    policy.write(tmp_path / "policy.json")
    arguments = ("--replicates", 0, "--to", tmp_path / "out", "--policy", tmp_path / "policy.json")
    done = call(app, "evaluate", trained.path, *arguments)
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"predictions.parquet", "metrics.json", "report.html"}
    assert own.read_bytes() == before
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["overall"] == json.loads(before)["overall"]
    assert (found["policy"]["name"], found["policy"]["version"]) == ("other", 3)
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    reviewed = sum(max(pair) >= 0.5 for pair in zip(*(table.column(f"probability.{k}").to_pylist() for k in cell), strict=True))
    assert {action["action"]: action["items"] for action in found["policy"]["actions"]} == {
        "allow": table.num_rows - reviewed,
        "review": reviewed,
    }
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.output


def test_evaluate_names_the_folder_after_what_differs_from_the_default(app, trained):
    done = call(app, "evaluate", trained.path, "--split", "validation", "--only", "text", "--checkpoint", "last")
    assert done.exit_code == 0, done.output
    assert (trained.path / "evaluation" / "validation-last-only-text" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "has no split tset"),
        (["--only", "smell"], "smell is not a modality"),
        (["--only", "audio"], "the model has no audio"),
        (["--checkpoint", "worst"], "no such checkpoint"),
        (["--data", "/nowhere"], "/nowhere is not a dataset"),
    ],
)
def test_evaluate_reports_mistakes_as_user_errors(app, trained, arguments, message):
    done = call(app, "evaluate", trained.path, *arguments)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_train_accepts_overrides_and_a_folder(app, make_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_recipe().model_dump_json())
    done = call(app, "train", recipe, "training.max_steps=2", "optimizer.lr=1e-4", "--run", tmp_path / "run")
    assert done.exit_code == 0, done.output
    from vigil_training.runs.run import Run

    assert Run(tmp_path / "run").recipe.optimizer.lr == 1e-4
    assert f"next: vigil evaluate {tmp_path / 'run'}" in done.output


def test_main_exits_with_1_after_a_failure_while_training(make_recipe, monkeypatch, capsys, tmp_path):
    from vigil_training.trainer import fit
    from vigil_training.trainer.errors import TrainingFailure

    def fail(*_, **__):
        raise TrainingFailure("too many refused")

    monkeypatch.setattr(fit, "_train", fail)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_recipe().model_dump_json())
    monkeypatch.setattr(sys, "argv", ["vigil", "train", str(recipe), "--run", str(tmp_path / "run")])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with pytest.raises(SystemExit) as exited:
            cli.main()
    finally:  # The command ignores them at its end.
        for number, handler in before.items():
            signal.signal(number, handler)
    assert exited.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: too many refused"
