"""What a run records of itself, and that a resumed run continues it."""

import json
import subprocess
import warnings
from pathlib import Path

import pytest

from vigil_slurm.job_environment import read_job_environment
from vigil_training.distributed.preemption import Preemption
from vigil_training.distributed.session import open_session
from vigil_training.distributed.strategies.factory import build_strategy
from vigil_training.distributed.world import World
from vigil_training.tracking.tracking import JsonLines, git_state, trim, wandb_logger
from vigil_training.trainer.fit import make_trainer


def test_metrics_are_lines_of_json(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines.log_metrics({"a": 1.5, "b": float("nan")}, step=3)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "a": 1.5, "b": None}


def test_lines_after_the_resumed_step_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 4}\n{"step": 5}\n{"step": 6, "a"')
    trim(path, 4)
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


def test_an_offline_run_holds_recipe_and_environment_and_is_continued(make_recipe, tmp_path):
    recipe = make_recipe(tracking__mode="offline", tracking__tags=["x"])
    seen = []
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of wandb's own making
            logger = wandb_logger(recipe, tmp_path, "name: tiny\n", {"python": "3"})
            logger.log_metrics({"train/loss": 0.5}, step=1)
            run = logger.experiment
            seen.append((run.id, run.config["recipe"]["name"], run.config["environment"]["python"]))
            files = run.dir
            run.finish()
        assert (Path(files) / "resolved.yaml").read_text() == "name: tiny\n"
    assert seen[0] == seen[1]
    assert seen[0][1:] == ("tiny", "3")
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_a_tracked_run_that_is_lost_ends_nothing(make_recipe, tmp_path, monkeypatch, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of wandb's own making
        logger = wandb_logger(make_recipe(tracking__mode="offline"), tmp_path, "", {})

        def lose(*_, **__):
            raise ConnectionResetError("reset by peer")

        with monkeypatch.context() as patch:
            patch.setattr(type(logger.experiment), "log", lose)
            logger.log_metrics({"a": 1.0}, step=1)
        logger.log_metrics({"a": 2.0}, step=2)
        logger.experiment.finish()
    assert caplog.text.count("tracking has ended (ConnectionResetError: reset by peer); metrics.jsonl goes on") == 1


def test_tracking_can_be_disabled(make_recipe, tmp_path):
    assert wandb_logger(make_recipe(), tmp_path, "", {}) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_trainer_is_quiet_and_of_the_recipes_precision(precision, make_recipe):
    recipe = make_recipe(training__precision=precision)
    with open_session(recipe, World(), Preemption()) as session:
        trainer = make_trainer(recipe, build_strategy(recipe, session.world, session.device), session, [], [])
    assert trainer.precision == {"fp32": "32-true", "bf16": "bf16-mixed"}[precision]
    assert trainer.progress_bar_callback is None  # standard error is not a terminal here


def test_an_evaluation_joins_the_tracked_run(make_recipe, train, tmp_path):
    from vigil.workflows.evaluate import evaluate
    from vigil_training.tracking.tracking import track_evaluation

    run = train(make_recipe(tracking__mode="offline", training__max_steps=2, evaluation__replicates=20), tmp_path / "run")
    evaluation = evaluate(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of wandb's own making
        track_evaluation(run, evaluation.folder, evaluation.results)
    id_ = (run.path / "wandb_id").read_text().strip()
    folders = [path for path in (run.path / "wandb").iterdir() if path.name.startswith("offline-run-")]
    # wandb appends -1 where two begin within a second
    assert {path.name.split("-")[3] for path in folders} == {id_}, "one tracked run for one training"
    media = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".html" and path.read_text() == (evaluation.folder / "report.html").read_text() for path in media)
    assert any("bright" in path.read_text() for path in media if path.name.endswith(".table.json"))


def test_a_run_without_tracking_tracks_no_evaluation(trained, tmp_path):
    from vigil_training.tracking.tracking import track_evaluation

    before = sorted(path.name for path in trained.path.iterdir())
    track_evaluation(trained, tmp_path, None)
    assert sorted(path.name for path in trained.path.iterdir()) == before
