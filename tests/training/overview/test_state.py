"""States of runs, from each way in which a start can end."""

import json
import os
import subprocess
from datetime import timedelta

import pytest
from run_folders import BEGIN, curve, make_run

from vigil_training.overview.state import STALE_SECONDS, read_state
from vigil_training.runs.starts import record_start, this_machine

LATER = BEGIN + timedelta(days=1)


def attempt(run, outcome, minutes):
    """Write the record of a Slurm job that began with the run and ended some minutes later."""
    (run / "slurm").mkdir()
    start = {"event": "start", "job": "7", "restart": 0, "nodes": "n1", "time": BEGIN.isoformat()}
    end = {"event": "end", "job": "7", "restart": 0, "status": 1, "outcome": outcome}
    end["time"] = (BEGIN + timedelta(minutes=minutes)).isoformat()
    (run / "slurm" / "attempts.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(end) + "\n")


@pytest.mark.parametrize("state", ["finished", "preempted", "interrupted"])
def test_read_state_is_how_the_last_start_ended(tmp_path, state):
    found = read_state(make_run(tmp_path / "a", state=state), LATER)
    assert (found.name, found.started, found.seconds) == (state, BEGIN, 5400)


def test_read_state_of_a_failed_run_has_the_reason(tmp_path):
    run = make_run(tmp_path / "a", state="failed")
    assert (read_state(run).name, read_state(run).reason) == ("failed", "the disk is full")
    (run / "failure.json").write_text('{"lines": [')
    assert read_state(run).reason == "failure.json cannot be read"


@pytest.mark.parametrize(
    ("outcome", "minutes", "expected"),
    [
        ("killed", 30, "killed"),
        ("stopped", 30, "stopped"),
        ("gave-up", 30, "failed"),
        ("preempted", 30, "stale"),
        ("killed", -30, "stale"),
    ],
)
def test_read_state_of_a_start_that_slurm_ended(tmp_path, outcome, minutes, expected):
    run = make_run(tmp_path / "a", state="open")
    attempt(run, outcome, minutes)
    os.utime(run / "metrics.jsonl", (BEGIN.timestamp(), BEGIN.timestamp()))
    assert read_state(run, LATER).name == expected


def test_read_state_without_an_end_follows_the_last_sign_of_life_on_another_machine(tmp_path):
    run = make_run(tmp_path / "a", state="open", lines=curve(10))
    sign = BEGIN + timedelta(hours=2)
    os.utime(run / "metrics.jsonl", (sign.timestamp(), sign.timestamp()))
    assert read_state(run, sign + timedelta(seconds=STALE_SECONDS - 1)).name == "running"
    found = read_state(run, sign + timedelta(seconds=STALE_SECONDS))
    assert found.name == "stale"
    assert found.reason.startswith("no sign of life from h since 2026-11-29")
    assert found.seconds == 7200


@pytest.mark.skipif(this_machine() is None, reason="processes are found on Linux only")
def test_read_state_without_an_end_looks_for_the_process_on_this_machine(tmp_path):
    run = make_run(tmp_path / "a", state="open")
    record_start(run, "u")
    assert (read_state(run).name, read_state(run).reason) == ("running", f"process {os.getpid()}")
    with subprocess.Popen(["true"]) as ended:
        child = ended.pid
    lines = (run / "starts.jsonl").read_text().replace(f'"pid": {os.getpid()}', f'"pid": {child}')
    (run / "starts.jsonl").write_text(lines)
    assert (read_state(run).name, read_state(run).reason) == ("killed", f"process {child} is gone")


def test_read_state_before_the_first_start_and_of_a_broken_folder(tmp_path):
    run = tmp_path / "a"
    run.mkdir()
    (run / "resolved.yaml").write_text("name: a\n")
    assert (read_state(run).name, read_state(run).reason) == ("new", "not started")
    (run / "job.sh").write_text("")
    assert read_state(run).reason == "submitted"
    (run / "resolved.yaml").unlink()
    assert (read_state(run).name, read_state(run).reason) == ("broken", "resolved.yaml is missing")
