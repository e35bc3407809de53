"""What `vigil jobs` shows of a task of a sweep."""

from pathlib import Path

import pytest

from vigil_training.sweeps.event_log import EventLog
from vigil_training.sweeps.slurm_tasks import array_folder, read_task


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text("name: tried\n")
    return tmp_path


def start_worker(sweep: Path, restart: int) -> EventLog:
    log = EventLog(sweep)
    log.open(slurm={"job": "41_3", "restart": restart})
    return log


def write(log: EventLog, number: int, attempt: int, state: str) -> None:
    log.read()
    if state == "RUNNING":
        assert log.claim(number, attempt)
    log.write(number, attempt, {"state": state, "time": 0.0})


def test_read_task_is_the_trial_of_the_newest_start(sweep: Path) -> None:
    task = array_folder(sweep).with_name("task-3")
    killed = start_worker(sweep, 0)
    write(killed, 0, 0, "RUNNING")
    write(killed, 0, 0, "COMPLETE")
    write(killed, 1, 0, "RUNNING")
    newest = start_worker(sweep, 1)
    write(newest, 2, 0, "RUNNING")
    found = read_task(task, "41_3", running=True)
    assert found is not None
    assert (found.sweep, found.trial, found.ended) == ("tried", 2, 1)
    assert str(found) == "tried: trial 2, 1 ended"


def test_read_task_of_an_agent_of_wandb_is_the_newest_trial(sweep: Path) -> None:
    """Each trial is a process, and a worker, of its own; one that was killed leaves its trial open."""
    task = array_folder(sweep).with_name("task-3")
    start_worker(sweep, 0).close()  # The agent, which closes lost trials before it begins.
    for number, end in enumerate(["COMPLETE", None, None]):
        log = start_worker(sweep, 0)
        write(log, number, 0, "RUNNING")
        if end is not None:
            write(log, number, 0, end)
    found = read_task(task, "41_3", running=True)
    assert found is not None
    assert (found.trial, found.ended) == (2, 1)
    ended = read_task(task, "41_3", running=False)
    assert ended is not None
    assert ended.trial is None
