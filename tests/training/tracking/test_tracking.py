"""Tracking: local metrics, environment and Weights & Biases, in fresh and resumed runs."""

import json
import subprocess
import warnings
from pathlib import Path

import fake_wandb
import pytest
import wandb

from vigil_slurm.job_environment import read_job_environment
from vigil_training.distributed.preemption import Preemption
from vigil_training.distributed.session import open_session
from vigil_training.distributed.strategies.factory import build_strategy
from vigil_training.distributed.world import World
from vigil_training.runs.run import open_run
from vigil_training.tracking.environment import git_state
from vigil_training.tracking.evaluations.tracked_evaluation import track_evaluation
from vigil_training.tracking.local_metrics import JsonLinesLogger, truncate_metrics
from vigil_training.tracking.wandb_logger import open_wandb_logger
from vigil_training.trainer.lightning_trainer import build_trainer


def recipe_and_text(recipe):
    return recipe, recipe.model_dump_json()


def test_json_lines_logger_writes_null_for_nan(tmp_path):
    lines = JsonLinesLogger(tmp_path / "metrics.jsonl", 0)
    lines.log_metrics({"a": 1.5, "b": float("nan")}, step=3)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "a": 1.5, "b": None}


def test_truncate_metrics_removes_lines_after_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 4}\n{"step": 5}\n{"step": 6, "a"')
    truncate_metrics(path, 4)
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'


def test_git_state_names_commit_and_changes(tmp_path):
    assert git_state(tmp_path) == {}

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path)["dirty"]


def test_read_job_environment():
    assert read_job_environment({}) == {}
    assert read_job_environment({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2", "HOME": "/root"}) == {
        "job": "17",
        "restarts": "2",
    }


def test_open_wandb_logger_continues_an_offline_run_with_recipe_and_environment(make_recipe, tmp_path):
    opened = open_run(*recipe_and_text(make_recipe(tracking__mode="offline", tracking__tags=["x"])), tmp_path)
    seen = []
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # raised by wandb
            logger = open_wandb_logger(opened, "name: tiny\n", {"python": "3"})
            logger.log_metrics({"train/loss": 0.5}, step=1)
            run = logger.tracked
            seen.append((run.id, run.config["recipe"]["name"], run.config["environment"]["python"]))
            files = run.dir
            run.finish()
        assert (Path(files) / "resolved.yaml").read_text() == "name: tiny\n"
    assert seen[0] == seen[1]
    assert seen[0][1:] == ("tiny", "3")
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_wandb_logger_stops_tracking_at_an_error_and_does_not_raise(make_recipe, tmp_path, monkeypatch, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by wandb
        opened = open_run(*recipe_and_text(make_recipe(tracking__mode="offline")), tmp_path)
        logger = open_wandb_logger(opened, "", {})

        def lose(*_, **__):
            raise ConnectionResetError("reset by peer")

        with monkeypatch.context() as patch:
            patch.setattr(type(logger.tracked), "log", lose)
            logger.log_metrics({"a": 1.0}, step=1)
        logger.log_metrics({"a": 2.0}, step=2)
        logger.tracked.finish()
    assert caplog.text.count("tracking stopped (ConnectionResetError: reset by peer); metrics.jsonl is still written") == 1


def test_open_wandb_logger_opens_nothing_when_disabled(make_recipe, tmp_path):
    opened = open_run(*recipe_and_text(make_recipe()), tmp_path)
    assert open_wandb_logger(opened, "", {}) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resolved.yaml", "run_id"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_build_trainer_has_the_precision_of_the_recipe_and_no_lightning_bar(precision, make_recipe):
    recipe = make_recipe(training__precision=precision)
    with open_session(recipe, World(), Preemption()) as session:
        trainer = build_trainer(recipe, build_strategy(recipe, session.world, session.device), session, [], [])
    assert trainer.precision == {"fp32": "32-true", "bf16": "bf16-mixed"}[precision]
    assert trainer.progress_bar_callback is None


def test_track_evaluation_adds_to_the_tracked_run_without_a_server(make_recipe, train, tmp_path, monkeypatch, caplog):
    from vigil.workflows.evaluate import evaluate

    wandb.teardown()  # W&B reads its environment once.
    url = f"http://127.0.0.1:{fake_wandb.unused_port()}"
    monkeypatch.setenv("WANDB_API_KEY", fake_wandb.API_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    run = train(make_recipe(tracking__mode="online", training__max_steps=2, evaluation__replicates=20), tmp_path / "run")
    evaluation = evaluate(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by wandb
        track_evaluation(run, evaluation.folder, evaluation.results, evaluation.data)
    wandb.teardown()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(
        f"{url}: cannot be reached (Connection refused); the run is tracked offline in {run.path / 'wandb'}; "
    )
    id_ = (run.path / "run_id").read_text().strip()
    folders = [path for path in (run.path / "wandb").iterdir() if path.name.startswith("offline-run-")]
    # wandb appends -1 where two begin within a second
    assert {path.name.split("-")[3] for path in folders} == {id_}, "one tracked run for one training"
    media = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".html" and "Vigil evaluation report" in path.read_text() for path in media)
    assert any("bright" in path.read_text() for path in media if path.name.endswith(".table.json"))


def test_track_evaluation_does_nothing_without_tracking(trained, tmp_path):

    before = sorted(path.name for path in trained.path.iterdir())
    track_evaluation(trained, tmp_path, None, None)
    assert sorted(path.name for path in trained.path.iterdir()) == before
