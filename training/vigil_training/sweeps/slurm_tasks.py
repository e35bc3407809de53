"""Workers of a sweep that are tasks of a Slurm array: their folders, and which trial each of them runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vigil_data.yaml_files.yaml_tree import read_file
from vigil_training.sweeps.event_log import EventLog


@dataclass(frozen=True, slots=True)
class SweepTask:
    """What a task of a sweep has done.

    Attributes:
        sweep: name of the sweep.
        trial: number of the trial that it runs; ``None`` if it runs none.
        run: run folder of that trial.
        ended: number of trials that it has ended.
    """

    sweep: str
    trial: int | None
    run: Path | None
    ended: int

    def __str__(self) -> str:
        """Return ``comments: trial 7, 2 ended``."""
        return f"{self.sweep}: {'' if self.trial is None else f'trial {self.trial}, '}{self.ended} ended"

    def as_json(self) -> dict[str, str | int | None]:
        """Return what it has done as plain data."""
        return {"name": self.sweep, "trial": self.trial, "ended": self.ended}


def array_folder(sweep: Path) -> Path:
    """Return the folder of a sweep's tasks, without the number of one."""
    return sweep / "workers" / "task"


def task_folders(sweep: Path, tasks: int) -> Sequence[Path]:
    """Return the folder of each task of an array: its batch script, log and starts."""
    base = array_folder(sweep)
    return [base.with_name(f"{base.name}-{task}") for task in range(tasks)]


def is_task_of(folder: Path, sweep: Path) -> bool:
    """Return whether a folder is that of a task of a sweep."""
    return folder.parent == array_folder(sweep).parent


def read_task(folder: Path, job: str, running: bool) -> SweepTask | None:
    """Return what a task of a sweep has done; ``None`` if the folder is not that of one.

    Args:
        folder: folder of the task.
        job: id of its job as Slurm shows it, such as ``41_3``.
        running: whether the job runs; otherwise it has no trial, even if its worker was killed before it could release it.
    """
    sweep = folder.parent.parent
    if not is_task_of(folder, sweep) or not (sweep / "sweep.yaml").is_file():
        return None
    name, log = _read_sweep(sweep)
    # Each start of the job is a worker of its own; under W&B's agent each trial is.
    jobs = {worker: facts["slurm"] for worker, facts in log.workers.items() if facts.get("slurm")}
    starts = {worker: slurm["restart"] for worker, slurm in jobs.items() if slurm["job"] == job}
    newest = max(starts.values(), default=0)
    own = [(trial, attempt) for trial in log.trials if (attempt := trial.deciding) is not None and attempt.worker in starts]
    current = [trial for trial, attempt in own if attempt.state == "RUNNING" and starts[attempt.worker] == newest]
    trial = current[-1] if running and current else None
    run = None if trial is None else sweep / str(trial.merged("user").get("run", ""))
    return SweepTask(name, None if trial is None else trial.number, run, sum(trial.ended for trial, _ in own))


@lru_cache(maxsize=8)
def _read_sweep(sweep: Path) -> tuple[str, EventLog]:
    """Return the name of a sweep and its events, which are the same for all of its tasks."""
    tree = read_file(sweep / "sweep.yaml", [], kind="sweep")
    values = None if tree is None else tree.plain()
    name = values.get("name") if isinstance(values, dict) else None
    log = EventLog(sweep)
    log.read()
    return str(name or sweep.name), log
