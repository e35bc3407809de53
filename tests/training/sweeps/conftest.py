"""Sweeps of a Python function, and workers as forked processes: they start at once."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.sweeps.sweep_file import read_sweep
from vigil_training.sweeps.sweep_folder import SweepFolder, open_sweep

OBJECTIVE = """
import json, os, time

def f(point, report):
    '''A parabola with its top at 0.3, approached over four epochs; "truth" has each value whose report was answered.'''
    x = point["x"]
    if x > 0.95:
        raise ValueError("too large")
    for epoch in range(1, 5):
        value = (1 - (x - 0.3) ** 2) * epoch / 4
        time.sleep(float(os.environ.get("EPOCH_SECONDS", "0")))
        stop = report(epoch, {"score": value})
        with open("truth", "a") as truth:
            truth.write(json.dumps([x, epoch, value]) + "\\n")
        if stop:
            break
    return {"score": value, "cost": x}
"""


@pytest.fixture
def make_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SweepFolder]:
    """A function that opens the sweep of a function in the working folder; ``text`` is the rest of its file."""
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    monkeypatch.chdir(tmp_path)

    def make(text: str, metric: str = "score") -> SweepFolder:
        lines = f"name: tried\nfunction: objective:f\nmetric: {metric}\n" + text
        (tmp_path / "sweep.yaml").write_text(lines)
        return open_sweep(read_sweep("sweep.yaml"), "sweep")

    return make


@pytest.fixture
def fork_worker() -> Iterator[Callable[[SweepFolder], Any]]:
    """A function that starts a worker in a process of its own, and returns the process; all are killed at the end."""
    context, started = multiprocessing.get_context("fork"), list[Any]()

    def work(path: Path) -> None:
        from vigil_training.sweeps.worker import run_worker

        try:
            with Preemption() as stop:
                run_worker(SweepFolder(path), stop)
        except Preempted as error:
            os._exit(error.status)
        os._exit(0)

    def fork(folder: SweepFolder) -> Any:
        started.append(context.Process(target=work, args=(folder.path,)))
        started[-1].start()
        return started[-1]

    yield fork
    for process in started:
        process.kill()
        process.join()
