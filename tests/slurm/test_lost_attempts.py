"""Starts of jobs that are over, from the queue, and the start of this process."""

import os
import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from vigil_slurm.client import lost_attempts
from vigil_slurm.job_environment import read_attempt


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "fakes", "squeue")
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKES", str(slurm.folder))
    return slurm


def test_lost_attempts_are_those_that_ended_were_requeued_or_started_again(slurm: FakeSlurm) -> None:
    slurm.script("squeue", "printf '%-64s%-32s%-16s\\n' 7_0 RUNNING 0 7_1 RUNNING 2 7_2 PENDING 1 8 COMPLETING 0")
    asked = {("7_0", 0), ("7_1", 1), ("7_1", 2), ("7_2", 1), ("8", 0), ("9", 0)}
    assert lost_attempts(asked) == {("7_1", 1), ("7_2", 1), ("9", 0)}


def test_lost_attempts_are_none_without_an_answer(slurm: FakeSlurm) -> None:
    assert lost_attempts(()) == set()
    assert slurm.calls == []
    slurm.script("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert lost_attempts({("7_0", 0)}) == set()


def test_attempt_of_a_process() -> None:
    array = {"SLURM_JOB_ID": "71", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}
    assert read_attempt({**array, "SLURM_RESTART_COUNT": "2"}) == ("70_3", 2)
    assert read_attempt({"SLURM_JOB_ID": "71"}) == ("71", 0)
    assert read_attempt({}) is None


@pytest.mark.slurm
def test_lost_attempts_on_a_cluster(cluster, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])
    number = cluster.submit("#!/bin/bash\nsleep 100\n", "--array=0-1", "--requeue", "--job-name=" + "x" * 70)
    first, second = f"{number}_0", f"{number}_1"
    for job in (first, second):
        cluster.wait(job, {"RUNNING"}, 60)
    assert lost_attempts({(first, 0), (second, 0)}) == set()
    cluster.command("scontrol", "requeue", first)
    cluster.command("scancel", second)
    end = time.monotonic() + 60
    while lost_attempts({(first, 0), (second, 0)}) != {(first, 0), (second, 0)}:
        assert time.monotonic() < end
        time.sleep(0.5)
    cluster.command("scancel", number)
