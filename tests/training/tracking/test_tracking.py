"""Tracking: local metrics, environment and Weights & Biases, in fresh and resumed runs."""

import gc
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import fake_wandb
import pytest
import wandb
from wandb_log import read_parts

from vigil_data.filesystem import write_file
from vigil_slurm.job_environment import read_job_environment
from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.distributed.session import open_session
from vigil_training.distributed.strategies.factory import build_strategy
from vigil_training.distributed.world import World
from vigil_training.recipe.specs import TrackingSpec
from vigil_training.runs.run import open_run
from vigil_training.runs.starts import record_start
from vigil_training.tracking import fault_tolerant, wandb_logger
from vigil_training.tracking.environment import git_diff, git_state
from vigil_training.tracking.evaluations.tracked_evaluation import track_evaluation
from vigil_training.tracking.local_metrics import JsonLinesLogger, truncate_metrics
from vigil_training.tracking.mode import decide_mode
from vigil_training.tracking.parts import STEP_METRIC, wandb_writes_to
from vigil_training.tracking.run_contents import add_files
from vigil_training.tracking.wandb_logger import open_wandb_logger, tracked_run
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
    (tmp_path / "new").write_text("3")
    assert git_diff(tmp_path).endswith("-1\n\\ No newline at end of file\n+2\n\\ No newline at end of file\nuntracked: new\n")


@pytest.mark.parametrize("level", ["ids", "full"])
def test_add_files_adds_the_difference_of_the_code_under_full_only(level, make_recipe, tmp_path):
    run = open_run(*recipe_and_text(make_recipe(tracking__content=level)), tmp_path / "run")
    write_file(run.code_diff, "+a line\n")
    files = tmp_path / "files"
    files.mkdir()
    add_files(SimpleNamespace(dir=files), run, {"dataset": {"version": None}})
    assert (files / "code.diff").is_file() == (level == "full")
    assert (files / "resolved.yaml").is_file()


def test_read_job_environment():
    assert read_job_environment({}) == {}
    assert read_job_environment({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2", "HOME": "/root"}) == {
        "job": "17",
        "restarts": "2",
    }


def open_logger(run, **named):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by wandb
        return open_wandb_logger(run, named.pop("environment", {}), **named)


def test_open_wandb_logger_continues_an_offline_run_with_what_it_is_made_from(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "41")
    opened = open_run(*recipe_and_text(make_recipe(tracking={"mode": "offline", "tags": ["x"]})), tmp_path / "run-a")
    environment = {"python": "3", "dataset": {"version": 1}, "preflight": {"hosts": ["a"]}}
    for step in (1, 2):
        logger = open_logger(opened, environment=environment, resume_step=step)
        logger.describe_plan({"steps": 9})
        logger.log_metrics({"train/loss": 0.5}, step=step)
        logger.finish(0)
    parts = read_parts(opened.path)
    assert len(parts) == 2
    for part in parts:
        assert (part.id, part.name, part.group, part.tags) == (opened.run_id, "run-a", "slurm-41", ("x",))
        assert part.config["recipe"] == json.loads(opened.recipe.model_dump_json())
        assert part.config["taxonomy"] == {"name": "tiny", "version": 1}
        assert part.config["dataset"] == {"name": "dataset", "version": 1}
        assert part.config["environment"]["preflight"] == {"hosts": ["a"]}
        assert part.config["plan"] == {"steps": 9}
        assert part.files["resolved.yaml"] == opened.resolved.read_bytes()
        assert json.loads(part.files["environment.json"]) == environment
        assert f"torch=={importlib.metadata.version('torch')}" in part.files["requirements.txt"].decode()
        assert "200 items, 2 labels" in part.files["dataset-card.md"].decode()
        assert part.exit_code == 0


def test_wandb_writes_nothing_outside_the_run_folder(make_recipe, tmp_path, monkeypatch):
    places = {"HOME": "home", "XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
    for variable, name in places.items():
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path / "home")
    wandb.teardown()
    opened = open_run(*recipe_and_text(make_recipe(tracking__mode="offline")), tmp_path / "run")
    logger = open_logger(opened)
    with wandb_writes_to(opened.path / "wandb"):
        artifact = wandb.Artifact("files", type="evaluation")
        artifact.add_file(str(opened.resolved))
        logger.tracked.log_artifact(artifact)
    logger.finish(0)
    wandb.teardown()
    assert [str(path) for name in places.values() for path in (tmp_path / name).rglob("*")] == []
    assert sorted(path.name for path in opened.path.iterdir()) == ["resolved.yaml", "run_id", "wandb"]
    assert list((opened.path / "wandb" / "artifacts" / "staging").iterdir())
    assert not {"WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"} & set(os.environ)


def test_open_wandb_logger_logs_the_lines_that_a_kill_lost_and_removes_later_steps(make_recipe, tmp_path):
    opened = open_run(*recipe_and_text(make_recipe(tracking__mode="offline")), tmp_path / "run")
    logger = open_logger(opened)
    for step in (1, 10, 40):
        logger.log_metrics({"train/loss": step / 2}, step=step)
    logger.finish(0)
    lines = [{"step": 1, "train/loss": 0.5}, {"step": 10, "train/loss": 5.0}, {"step": 20, "train/loss": None}]
    lines += [{"step": 30, "train/loss": 15.0}, {"step": 30, "validation/loss": 7.0}, {"step": 40, "train/loss": 20.0}]
    opened.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    logger = open_logger(opened, resume_step=30)
    logger.log_metrics({"validation/macro_ap": 1.0}, step=30)
    logger.log_metrics({"train/loss": 20.0}, step=40)
    logger.finish(0)
    first, second = read_parts(opened.path)
    found = [{name: value for name, value in row.items() if not name.startswith("_")} for row in first.history + second.history]
    assert found[:2] == [{STEP_METRIC: 1, "train/loss": 0.5}, {STEP_METRIC: 10, "train/loss": 5.0}]
    assert math.isnan(found[2].pop("train/loss"))
    assert found[2] == {STEP_METRIC: 20}
    assert found[3:] == [
        {STEP_METRIC: 30, "train/loss": 15.0, "validation/loss": 7.0, "validation/macro_ap": 1.0},
        {STEP_METRIC: 40, "train/loss": 20.0},
    ]
    assert [row["_step"] for row in second.history] == [20, 30, 40]


@pytest.mark.parametrize(
    ("error", "title", "text"),
    [
        (Preempted("stopped by SIGTERM\nmore"), "run: preempted", "preempted after the metrics of step 7: stopped by SIGTERM"),
        (ValueError(), "run: failed", "failed after the metrics of step 7: ValueError"),
        (None, None, None),
    ],
)
def test_tracked_run_alerts_how_the_training_ended(error, title, text, make_recipe, tmp_path):
    opened = open_run(*recipe_and_text(make_recipe(tracking__mode="offline")), tmp_path / "run")
    with suppress(type(error)), tracked_run(opened, {}, 0) as logger:
        logger.log_metrics({"train/loss": 1.0}, step=7)
        if error is not None:
            raise error
    [part] = read_parts(opened.path)
    assert part.alerts == ([] if error is None else [(title, text)])
    assert part.exit_code == (0 if error is None else 1)


def test_tracked_run_alerts_that_the_start_before_was_killed(make_recipe, tmp_path):
    opened = open_run(*recipe_and_text(make_recipe(tracking__mode="offline")), tmp_path / "run")
    record_start(opened.path, "first")
    record_start(opened.path, "second")
    with tracked_run(opened, {}, 4):
        pass
    [part] = read_parts(opened.path)
    [(title, text)] = part.alerts
    assert title == "run: killed"
    assert text.endswith("was killed or lost its machine; this one continues at step 4")


def test_wandb_logger_waits_for_no_service_that_hangs(make_recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 1.0)
    monkeypatch.setattr(fault_tolerant, "MAX_WAITING_CALLS", 5)
    wandb.teardown()
    opened = open_run(*recipe_and_text(make_recipe(tracking__mode="offline")), tmp_path / "run")
    logger = open_logger(opened)
    [service] = [pid for pid in wandb_logger.child_processes() if Path(f"/proc/{pid}/comm").read_text().strip() == "wandb-core"]
    os.kill(service, signal.SIGSTOP)
    value = {f"metric/{n}": "x" * 1000 for n in range(100)}
    begun = time.monotonic()
    for step in range(1, 201):
        logger.log_metrics(value, step=step)
    assert time.monotonic() - begun < 10, "a step waits for nothing"
    logger.finish(0)
    assert time.monotonic() - begun < 20
    assert "wandb: its service does not answer; metrics.jsonl has all the numbers" in caplog.text
    assert Path(f"/proc/{service}/stat").read_text().split()[2] == "Z", "ended"
    for process in gc.get_objects():
        if type(process) is subprocess.Popen and process.pid == service:
            process.wait()  # W&B's library has not, and a later test would see the warning.


def test_full_disk_stops_tracking_and_not_the_training(
    make_recipe, train, trained, assert_same_run, small_disk, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    recipe = make_recipe(tracking__mode="offline")
    open_run(*recipe_and_text(recipe), run)
    (run / "wandb").symlink_to(small_disk)
    (small_disk / "filler").write_bytes(bytes(2_000_000 - 65536))
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 5.0)
    run = train(recipe, run)
    wandb.teardown()
    assert_same_run(trained.path, run.path)
    assert run.finished


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, ("offline", "no API key for api.wandb.ai; `wandb login` lets runs be sent while they are trained")),
        ("auto", {"WANDB_API_KEY": "x"}, ("online", "API key in WANDB_API_KEY")),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, ("offline", "WANDB_MODE is offline")),
        ("auto", {"WANDB_BASE_URL": "https://wandb.example.org"}, ("online", "API key for wandb.example.org in NETRC")),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "x"}, ("online", "API key in WANDB_IDENTITY_TOKEN_FILE")),
        ("disabled", {"WANDB_API_KEY": "x"}, ("disabled", "tracking.mode is disabled")),
    ],
)
def test_decide_mode(mode, environment, expected, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine wandb.example.org login user password x\n")
    found = decide_mode(TrackingSpec(mode=mode), {"NETRC": str(netrc), **environment})
    assert found == (expected[0], expected[1].replace("NETRC", str(netrc)))
    netrc.write_text("machine")
    if not environment:
        assert decide_mode(TrackingSpec(mode=mode), {"NETRC": str(netrc)})[1].startswith(f"{netrc} cannot be read: ")


def test_wandb_logger_stops_tracking_at_an_error_and_does_not_raise(make_recipe, tmp_path, monkeypatch, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by wandb
        opened = open_run(*recipe_and_text(make_recipe(tracking__mode="offline")), tmp_path)
        logger = open_wandb_logger(opened, {})

        def lose(*_, **__):
            raise ConnectionResetError("reset by peer")

        with monkeypatch.context() as patch:
            patch.setattr(type(logger.tracked), "log", lose)
            logger.log_metrics({"a": 1.0}, step=1)
            logger.log_metrics({"a": 2.0}, step=2)
            logger.finish(0)
        logger.tracked.finish()
    assert caplog.text.count("tracking stopped (ConnectionResetError: reset by peer); metrics.jsonl is still written") == 1


def test_open_wandb_logger_opens_nothing_when_disabled(make_recipe, tmp_path):
    opened = open_run(*recipe_and_text(make_recipe()), tmp_path)
    assert open_wandb_logger(opened, {}) is None
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
