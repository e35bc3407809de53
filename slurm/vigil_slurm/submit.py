"""Submission: writes the batch script into the run folder, calls sbatch, and registers the job."""

import datetime as dt
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import write_failure, write_file
from vigil_slurm.client import queued_jobs, run_command
from vigil_slurm.registry import SubmittedJob, register_jobs

MAX_ARRAY_TASKS = 1000
"""Slurm's own limit is 1001 unless the site raised it (MaxArraySize, slurm.conf(5))."""

_ARRAY_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::([1-9]\d{0,8}))?)?")


def parse_array(text: str) -> list[int]:
    """Return the task indices of a job array.

    Args:
        text: as for ``sbatch --array``: ``0-4``, ``1,3,7``, ``0-10:2``; a suffix ``%N`` runs at most N tasks at a time.

    Raises:
        UserError: if it has another form, or more than 1000 tasks.
    """
    matches = [_ARRAY_PART.fullmatch(part) for part in text.partition("%")[0].split(",")]
    if not re.fullmatch(r"[^%]+(%[1-9]\d{0,3})?", text) or None in matches:
        raise UserError(f"--array {text}: must have the form 0-4, 1,3,7 or 0-10:2; append %N for at most N tasks at a time")
    indices: set[int] = set()
    for match in filter(None, matches):
        first, last, step = match.groups()
        part = range(int(first), int(last or first) + 1, int(step or 1))
        if not part:
            raise UserError(f"--array {text}: {match[0]} ends before it begins")
        if len(part) > MAX_ARRAY_TASKS or len(indices.union(part)) > MAX_ARRAY_TASKS:
            raise UserError(f"--array {text}: more than {MAX_ARRAY_TASKS} tasks")
        indices.update(part)
    return sorted(indices)


def refuse_queued(runs: Sequence[str | PathLike[str]]) -> None:
    """Refuse run folders that already have a job in the queue.

    Args:
        runs: run folders, absolute.

    Raises:
        UserError: with a line for each of them.
        Failure: if squeue is not installed or fails.
    """
    folders = set(map(str, runs))
    queued = [job for job in queued_jobs() if job.run in folders]
    if queued:
        raise UserError(*(f"{job.run}: job {job.job} is {job.state}; vigil cancel {job.job} ends it" for job in queued))


def submit_batch_script(script: str, runs: Sequence[str | PathLike[str]], tasks: Sequence[int] | None, nodes: int) -> str:
    """Write the batch script into each run folder, submit it, and return the job's id.

    Args:
        script: batch script.
        runs: run folders, absolute; they exist.
        tasks: array index of each run; ``None`` if the job is not an array.
        nodes: number of nodes of each run, for the registry.

    Raises:
        Failure: if a folder cannot be written or sbatch fails.
    """
    folders = [Path(run) for run in runs]
    for run in folders:
        try:
            # Slurm does not make folders for a log, and drops the log of a job whose folder is missing.
            (run / "slurm").mkdir(exist_ok=True)
            (run / "slurm" / "stop").unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(run, error) from None
        write_file(run / "job.sh", script)
    job = _sbatch(folders[0] / "job.sh")
    now = dt.datetime.now().astimezone().isoformat(timespec="seconds")
    names = [job] if tasks is None else [f"{job}_{task}" for task in tasks]
    register_jobs([SubmittedJob(name, str(run), now, nodes) for name, run in zip(names, folders, strict=True)])
    return job


def submit_command_script(script: str, folder: str | PathLike[str]) -> str:
    """Write the script of a command as ``job.sh`` into a folder, submit it, and return the job's id.

    Raises:
        Failure: if the folder cannot be written or sbatch fails.
    """
    to = Path(folder)
    try:
        (to / "slurm").mkdir(exist_ok=True)
    except OSError as error:
        raise write_failure(to, error) from None
    write_file(to / "job.sh", script)
    return _sbatch(to / "job.sh")


def _sbatch(script: Path) -> str:
    return run_command("sbatch", "--parsable", str(script)).strip().partition(";")[0]
