"""Upload of the tracked run: a training neither waits for W&B's server nor fails with it, whatever the server does."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_wandb
import pytest
from wandb.proto.wandb_internal_pb2 import Record

from vigil_training.runs.run import open_run
from vigil_training.tracking import upload
from vigil_training.tracking.parts import STEP_METRIC, repair_parts, write_record
from vigil_training.tracking.wandb_logger import open_wandb_logger


def warnings_of(run):
    """What tracking by W&B says; the thread of an earlier test's MLflow logger may still give up on its server meanwhile."""
    lines = (run.path / "train.log").read_text().splitlines()
    return [x for x in lines if " vigil.track: " in x and "tracked at" not in x and " mlflow: " not in x]


def sync(folder):
    """Run the command that the warning names."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", folder]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, timeout=120)


def logged_steps(run):
    return sorted({json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()})


def test_upload_sends_the_run_while_it_is_trained(wandb_server, make_recipe, train, trained, assert_same_run, tmp_path):
    run = train(make_recipe(tracking__mode="online"), tmp_path / "run")
    rows = wandb_server.history[run.run_id]
    assert [rows[n]["_step"] for n in sorted(rows)] == logged_steps(run.path)
    assert list(wandb_server.history) == [run.run_id]
    assert warnings_of(run) == []
    assert f"tracked at {wandb_server.url}/team/vigil/runs/{run.run_id}" in (run.path / "train.log").read_text()
    assert_same_run(trained.path, run.path)
    sync(run.path / "wandb")
    assert len(rows) == len(logged_steps(run.path)), "it was sent once"


TROUBLE = {
    "refuses": "cannot be reached (Connection refused)",
    "hangs": "no answer within 5 s",
    "401": "the server refuses the API key (HTTP 401); run `wandb login --relogin`",
    "hangs later": "not everything was sent in time",
    "fails later": "not everything was sent in time",
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_training_ends_with_one_warning_whatever_the_server_does(
    trouble, wandb_server, make_recipe, train, trained, assert_same_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(upload, "FINISHED_SECONDS", 3.0 if trouble.endswith("later") else 30.0)
    with monkeypatch.context() as environment:
        if trouble == "refuses":
            environment.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{fake_wandb.unused_port()}")
        elif trouble == "hangs":
            wandb_server.hangs = True
        elif trouble.isdigit():
            wandb_server.status = int(trouble)
        else:
            wandb_server.trouble_after_upsert = trouble.removesuffix(" later")
        begun = time.monotonic()
        run = train(make_recipe(tracking__mode="online"), tmp_path / "run")
        seconds = time.monotonic() - begun
    assert seconds < 60, "an undisturbed run takes a second or two; W&B's own timeouts are minutes"
    (warning,) = warnings_of(run)
    assert f": {TROUBLE[trouble]}; the run is tracked offline in {run.path / 'wandb'}; " in warning
    assert warning.endswith(f"send it with `vigil track sync {run.path}`")
    assert_same_run(trained.path, run.path)

    assert wandb_server.history == {}
    wandb_server.status, wandb_server.hangs, wandb_server.trouble_after_upsert = 200, False, ""
    sync(run.path / "wandb")
    rows = wandb_server.history[run.run_id]
    assert [rows[n]["_step"] for n in sorted(rows)] == logged_steps(run.path)


def test_send_does_not_use_the_service_of_the_training(tmp_path, monkeypatch):
    """It would go on sending after the upload is ended, next to the `wandb sync` that the warning names."""
    monkeypatch.setenv("WANDB_SERVICE", "the training's")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nenv\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    part = tmp_path / "wandb" / "offline-run-1" / "run-1.wandb"
    part.parent.mkdir(parents=True)
    problem = upload._sync(part, None, False, Waits())
    assert problem.startswith("`wandb sync` failed (status 0; ")
    environment = (tmp_path / "wandb" / "upload.log").read_text()
    assert f"WANDB_DIR={tmp_path}\n" in environment
    assert "WANDB_SERVICE" not in environment


@pytest.mark.parametrize("reachable", ["always", "at the end"])
def test_parts_of_a_resumed_run_are_sent_in_order_as_one_run(reachable, wandb_server, make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "INTERRUPTED_SECONDS", 300.0 if reachable == "always" else 0.0)
    monkeypatch.setattr(upload, "FINISHED_SECONDS", 300.0)
    recipe = make_recipe(tracking__mode="online")
    run = open_run(recipe, recipe.model_dump_json(), tmp_path / "run")
    for first, last in ((1, 5), (6, 9), (8, 12)):
        wandb_server.status = 200 if last == 12 or reachable == "always" else 503
        logger = open_wandb_logger(run, {}, first - 1)
        for step in range(first, last + 1):
            logger.log_metrics({"train/loss": 1 / step}, step=step)
            with run.metrics.open("a") as file:
                file.write(json.dumps({"step": step, "train/loss": 1 / step}) + "\n")
        logger.finish(0 if last == 12 else 1)
        logger.join_upload()
    rows = wandb_server.history
    assert list(rows) == [run.run_id]
    for _ in range(2):
        sent = [rows[run.run_id][n] for n in sorted(rows[run.run_id])]
        assert [(row[STEP_METRIC], row["_step"], row["train/loss"]) for row in sent] == [(n, n, 1 / n) for n in range(1, 13)]
        marks = list((run.path / "wandb").glob("offline-run-*/*.synced"))
        assert len(marks) == 3
        if reachable == "always":
            break
        for mark in marks:
            mark.unlink()
        assert upload._send_all(run.path / "wandb", "", Waits()) is None, "all is sent again, which adds nothing"
    assert not (run.path / "wandb" / "rest").exists()


def test_upload_tries_again_while_the_training_goes_on(wandb_server, make_recipe, tmp_path):
    recipe = make_recipe(tracking__mode="offline")
    run = open_run(recipe, recipe.model_dump_json(), tmp_path / "run")
    logger = open_wandb_logger(run, {})
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finish(0)
    wandb_server.status = 503
    program = (
        "import sys; from pathlib import Path; from vigil_training.tracking import upload; upload.RETRY_SECONDS = 0.2\n"
        "sys.exit(upload.main(Path(sys.argv[1]), *sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, run.path / "wandb", "", wandb_server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline()) == {"problem": "the server answers HTTP 503"}
        wandb_server.status = 200
        assert process.wait(60) == 0
    assert wandb_server.history[run.run_id][0]["_step"] == 1


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_probe_reports_what_the_server_answers(status, wandb_server):
    assert upload.probe(wandb_server.url) is None
    wandb_server.status = status
    assert f"HTTP {status}" in upload.probe(wandb_server.url)


def test_probe_names_an_unknown_host_and_a_missing_key(wandb_server, monkeypatch, tmp_path):
    assert upload.probe("http://wandb.invalid") == "cannot be reached (Name or service not known)"
    monkeypatch.delenv("WANDB_API_KEY")
    assert upload.probe(wandb_server.url) == "no API key for 127.0.0.1; run `wandb login`"
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login user password {fake_wandb.API_KEY}\n")  # as `wandb login` writes it
    monkeypatch.setenv("NETRC", str(netrc))
    assert upload.probe(wandb_server.url) is None


def test_upload_ends_with_a_training_that_is_killed(wandb_server, tmp_path):
    write_part(tmp_path / "wandb" / "offline-run-1-a" / "run-a.wandb")
    program = (
        "import sys, time; from pathlib import Path; from vigil_training.tracking.upload import Upload\n"
        "upload = Upload(Path(sys.argv[1]), 'offline-run-1-a', sys.argv[2]); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path / "wandb", wandb_server.url]) as training:
        wait_for(lambda: any("--live" in words for words in processes_of(tmp_path)), "`wandb beta sync --live` runs")
        training.send_signal(signal.SIGKILL)
    wait_for(lambda: processes_of(tmp_path) == [], "all of them end")


@pytest.fixture
def empty_part(tmp_path):
    part = tmp_path / "wandb" / "offline-run-1-a" / "run-a.wandb"
    part.parent.mkdir(parents=True)
    part.touch()
    return part


def test_part_that_is_empty_when_the_training_ends_is_sent_once_it_is_written(empty_part, wandb_server):
    """On a busy machine W&B's service writes a short training's part after the training has ended it."""
    training = Waits()
    training.ended.set()
    writes = threading.Timer(1.0, lambda: write_part(empty_part, complete=True))
    writes.start()
    assert upload._send(empty_part, True, training) is None
    writes.join()
    assert wandb_server.runs == {"a"}


def test_part_that_stays_empty_is_given_up_in_time(empty_part, wandb_server):
    training = Waits()
    training.deadline = time.monotonic() + 1.0
    assert upload._send(empty_part, True, training) == "not everything was sent in time"


def test_upload_that_does_not_end_in_time_leaves_no_process(wandb_server, monkeypatch, tmp_path):
    """A process that goes on sending would send the run a second time after `wandb sync`."""
    write_part(tmp_path / "wandb" / "offline-run-1-a" / "run-a.wandb")
    started = upload.Upload(tmp_path / "wandb", "offline-run-1-a", wandb_server.url)
    wait_for(lambda: any("--live" in words for words in processes_of(tmp_path)), "`wandb beta sync --live` runs")
    started.end(complete=True)
    monkeypatch.setattr(upload, "FINISHED_SECONDS", -upload.PROBE_TIMEOUT_SECONDS)  # Long before it would give up by itself.
    started.join()
    wait_for(lambda: processes_of(tmp_path) == [], "all of them end")


class Waits(upload._Parent):
    """Stands for a training that waits for its upload."""

    def __init__(self):
        self.ended, self.deadline = threading.Event(), math.inf


def write_part(path, *, complete=False):
    """Write a part that has only begun, or that ends as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_record(file, Record(run={"run_id": "a", "project": "vigil"}).SerializeToString())
        if complete:
            write_record(file, Record(exit={"exit_code": 0}).SerializeToString())


def processes_of(folder):
    """Command lines of the processes that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_text().split("\0")
        except OSError:
            continue
        if any(str(folder) in word for word in words):
            found.append(words)
    return found


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_repaired_part_does_not_keep_later_ones_from_being_sent(wandb_server, make_recipe, tmp_path):
    recipe = make_recipe(tracking__mode="offline")
    run = open_run(recipe, recipe.model_dump_json(), tmp_path / "run")
    for first in (1, 501):
        logger = open_wandb_logger(run, {}, first - 1)
        if first == 501:
            (torn,) = [path for path in (run.path / "wandb").glob("offline-run-*/*.wandb") if path.stat().st_size > 60_000]
        for step in range(first, first + 500):
            logger.log_metrics({"train/loss": 1 / step}, step=step)
        logger.finish(1)
    whole = torn.read_bytes()

    def repaired(length: int) -> int:
        """Cut the part after so many bytes, and return its length when it was repaired."""
        torn.write_bytes(whole[:length])
        os.utime(torn, (time.time() - 60, time.time() - 60))
        repair_parts(run.path / "wandb")
        return torn.stat().st_size

    record_end = repaired(60_000)
    assert record_end > 50_000
    assert repaired(record_end + 5) == record_end, "five bytes are in the head of the next record"
    sync(run.path / "wandb")
    rows = wandb_server.history[run.run_id]
    steps = [rows[n][STEP_METRIC] for n in sorted(rows)]
    assert steps[0] == 1
    assert steps[-500:] == list(range(501, 1001))
    assert 50 < len(steps) < 1000
