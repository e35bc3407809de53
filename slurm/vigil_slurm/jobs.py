"""This user's runs under Slurm, from the queue, the registry and the run folders; cancelling a job."""

import datetime as dt
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from vigil_data.errors import Failure, UserError
from vigil_slurm.client import QueuedJob, queued_jobs, recent_job_states, run_command
from vigil_slurm.registry import SubmittedJob, read_registry
from vigil_slurm.run_state import Attempt, read_attempts, read_progress

ENDED = "ENDED"
"""State of a job if neither Slurm nor the run folder knows how it ended."""

_FINAL_STATES = {"finished": "COMPLETED", "failed": "FAILED", "stopped": "STOPPED", "gave-up": "GAVE UP"}
"""Outcome of an attempt after which the batch script does not requeue, to the state that is shown."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job and the progress of its run.

    Attributes:
        job: id.
        run: run folder.
        state: Slurm's state, or the one in the run folder once Slurm has forgotten the job; REQUEUED waits for another start.
        reason: why it waits, or why the run failed.
        active: whether it is in the queue.
        nodes: number of nodes.
        elapsed: running time of its last start, ``d-hh:mm:ss``.
        step: optimizer steps done; ``None`` before the first record.
        epoch: epoch, from 0.
        loss: last recorded training loss.
        restarts: number of restarts.
        log: path of the job's log, which need not exist yet.
    """

    job: str
    run: str
    state: str
    reason: str
    active: bool
    nodes: str
    elapsed: str
    step: int | None
    epoch: int | None
    loss: float | None
    restarts: int
    log: str


def log_path(run: str, job: str) -> Path:
    """Return the path of a job's log, to which restarts append."""
    return Path(run) / "slurm" / f"{job}.log"


def list_jobs() -> list[JobStatus]:
    """Return ended jobs, then the jobs in the queue, each the newest last.

    Of the ended jobs the last one of each run is returned, if the run folder still exists.

    Raises:
        Failure: if squeue is not installed or fails.
    """
    active = queued_jobs()
    active_ids = {job.job for job in active}
    active_runs = {job.run for job in active}
    last = {job.run: job for job in read_registry()}
    ended = [job for job in last.values() if job.job not in active_ids and job.run not in active_runs and Path(job.run).is_dir()]
    states = recent_job_states() if ended else {}
    return [*(_ended_status(job, states.get(job.job)) for job in ended), *map(_active_status, active)]


def find_job(name: str) -> tuple[str, str]:
    """Return the id and the run folder of a job.

    Args:
        name: a job's id or a run folder.

    Raises:
        UserError: if there is no such Vigil job and no such run.
        Failure: if the job is not in the registry and squeue is not installed or fails.
    """
    known = read_registry()
    if not name.replace("_", "").isdigit() or Path(name).is_dir():
        run = str(Path(name).absolute())
        jobs = [job.job for job in known if job.run == run] or [job.job for job in queued_jobs() if job.run == run]
        if not jobs:
            raise UserError(f"{name}: this user has submitted no job for it; `vigil jobs` lists those that were")
        return jobs[-1], run
    for submitted in reversed(known):
        if submitted.job == name:
            return submitted.job, submitted.run
    if (queued := find_queued_job(name)) is not None:
        return queued.job, queued.run
    tasks = [job.job for job in known if job.job.startswith(f"{name}_")]
    if tasks:
        raise UserError(f"{name}: an array; name one of its tasks, such as {tasks[0]}")
    raise UserError(f"{name}: not a Vigil job of this user; `vigil jobs` lists those")


def find_queued_job(job: str) -> QueuedJob | None:
    """Return a job in the queue by its id; ``None`` if it is not there.

    Raises:
        Failure: if squeue is not installed or fails.
    """
    return next((queued for queued in queued_jobs() if queued.job == job), None)


def cancel_job(job: str, run: str | PathLike[str], signal: str | None) -> str:
    """End a job, and mark the run as stopped, so that its batch script does not requeue it.

    Args:
        job: id.
        run: run folder.
        signal: signal for the ranks instead of ending the job, such as USR1, after which they save a checkpoint and stop.

    Returns:
        A line about what was done.

    Raises:
        UserError: if the job is not in the queue.
        Failure: if Slurm refuses.
    """
    queued = find_queued_job(job)
    if queued is None:
        raise UserError(f"{job}: not in the queue; `vigil jobs` shows how it ended")
    stop = Path(run) / "slurm" / "stop"
    try:
        stop.touch()
    except OSError as error:
        raise Failure(f"{stop}: cannot be written, and without it the job would be requeued: {error.strerror}") from None
    if signal is None or queued.state == "PENDING":
        run_command("scancel", job)
        return f"cancelled job {job}"
    run_command("scancel", f"--signal={signal}", job)
    return f"sent {signal} to job {job}: it saves a checkpoint and stops"


def _attempts_of(run: str, job: str) -> list[Attempt]:
    return [attempt for attempt in read_attempts(run) if attempt.job == job]


def _active_status(job: QueuedJob) -> JobStatus:
    attempts = _attempts_of(job.run, job.job)
    pending = job.state == "PENDING"
    # Every attempt of a pending job has ended; the last one of a running job is its present start.
    restarts = max(0, len(attempts) - (not pending))
    return _status(
        job.job,
        job.run,
        state="REQUEUED" if pending and attempts else job.state,
        reason=job.reason if pending and job.reason != "None" else "",
        active=True,
        nodes=job.nodes,
        elapsed=job.elapsed,
        restarts=restarts,
    )


def _ended_status(job: SubmittedJob, slurm_state: str | None) -> JobStatus:
    attempts = _attempts_of(job.run, job.job)
    last = attempts[-1] if attempts else None
    state, reason = _ended_state(Path(job.run), last, slurm_state)
    elapsed = "" if last is None or not last.end else _elapsed(last.start, last.end)
    restarts = max(0, len(attempts) - 1)
    return _status(
        job.job, job.run, state=state, reason=reason, active=False, nodes=str(job.nodes), elapsed=elapsed, restarts=restarts
    )


def _ended_state(run: Path, last: Attempt | None, slurm_state: str | None) -> tuple[str, str]:
    """Return state and reason of an ended job; the run folder takes precedence, since for Slurm a requeue ends a job too."""
    if (run / "thresholds.json").is_file():
        return "COMPLETED", ""
    if (run / "failure.json").is_file():
        return "FAILED", _first_line(run / "failure.json")
    outcome = last.outcome if last is not None else None
    if outcome in _FINAL_STATES:
        return _FINAL_STATES[outcome], ""
    # The script expected a restart that did not come; Slurm may know why, or the job was cancelled.
    if slurm_state is not None and slurm_state not in ("COMPLETED", "COMPLETING"):
        return slurm_state, f"{outcome}, and not started again" if slurm_state == "FAILED" and outcome is not None else ""
    if (run / "slurm" / "stop").exists():
        return "CANCELLED", ""
    return ENDED, outcome or ""


def _status(job: str, run: str, *, state: str, reason: str, active: bool, nodes: str, elapsed: str, restarts: int) -> JobStatus:
    progress = read_progress(run)
    return JobStatus(
        job,
        run,
        state,
        reason,
        active,
        nodes,
        elapsed,
        progress.step,
        progress.epoch,
        progress.loss,
        restarts,
        str(log_path(run, job)),
    )


def _first_line(failure: Path) -> str:
    try:
        return str(json.loads(failure.read_text(encoding="utf-8"))["lines"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""


def _elapsed(start: str, end: str) -> str:
    """Return the time between two ISO 8601 times as squeue writes it: ``d-hh:mm:ss`` without leading parts that are zero."""
    seconds = int((dt.datetime.fromisoformat(end) - dt.datetime.fromisoformat(start)).total_seconds())
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
