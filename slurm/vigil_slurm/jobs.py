"""This user's runs under Slurm: the queue, the registry and the run folders put together."""

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path

from vigil_data.errors import Failure, UserError
from vigil_slurm import progress, run_state
from vigil_slurm.client import call
from vigil_slurm.registry import Submitted
from vigil_slurm.registry import read as submitted
from vigil_slurm.squeue import Queued, ended, queued

ENDED = "ENDED"
"""The state of a job of which neither Slurm nor the run folder says how it ended."""

_FINAL = {"finished": "COMPLETED", "failed": "FAILED", "stopped": "STOPPED", "gave-up": "GAVE UP"}
"""What the batch script says of the last attempt, where no restart was meant to follow, to the state that is shown."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A job and how far its run is.

    Attributes:
        job: its id.
        run: its run folder.
        state: Slurm's, or what the run folder tells once Slurm has forgotten; REQUEUED waits for another start.
        reason: why it waits, or why the run failed.
        active: whether it is in the queue.
        nodes: machines.
        elapsed: of its present or last start, ``d-hh:mm:ss``.
        step: optimizer steps made; ``None`` before the first record.
        epoch: from 0.
        loss: of training, as last recorded.
        restarts: how often the job was started again.
        log: the job's log; it need not exist yet.
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
    """Where Slurm writes what a job's processes print; restarts append to it."""
    return Path(run) / "slurm" / f"{job}.log"


def listed() -> list[Listed]:
    """Jobs in the queue and jobs that left it, the newest last; of those, the last of each run whose folder is still there.

    Raises:
        Failure: if squeue is absent or fails.
    """
    active = queued()
    running = {job.job for job in active}
    busy = {job.run for job in active}
    last = {job.run: job for job in submitted()}
    gone = [job for job in last.values() if job.job not in running and job.run not in busy and Path(job.run).is_dir()]
    states = ended() if gone else {}
    return [*(_left(job, states.get(job.job)) for job in gone), *map(_active, active)]


def find(name: str) -> tuple[str, str]:
    """The job and the run folder that a user means.

    Args:
        name: a job's id or a run folder.

    Raises:
        UserError: if there is no such job of Vigil's and no such run.
        Failure: if a job is neither in the registry nor can squeue be asked.
    """
    known = submitted()
    if not name.replace("_", "").isdigit() or Path(name).is_dir():
        run = str(Path(name).absolute())
        jobs = [job.job for job in known if job.run == run] or [job.job for job in queued() if job.run == run]
        if not jobs:
            raise UserError(f"{name}: no job of this user's was submitted for it; `vigil jobs` shows those that were")
        return jobs[-1], run
    for one in reversed(known):
        if one.job == name:
            return one.job, one.run
    if (found := state_of(name)) is not None:
        return found.job, found.run
    tasks = [job.job for job in known if job.job.startswith(f"{name}_")]
    if tasks:
        raise UserError(f"{name}: an array; name one of its tasks, such as {tasks[0]}")
    raise UserError(f"{name}: not a job of Vigil's that this user submitted; `vigil jobs` shows those")


def state_of(job: str) -> Queued | None:
    """The job in the queue, or ``None`` if it is not there.

    Raises:
        Failure: if squeue is absent or fails.
    """
    return next((one for one in queued() if one.job == job), None)


def _active(job: Queued) -> Listed:
    starts = [attempt for attempt in run_state.read(Path(job.run)) if attempt.job == job.job]
    waits = job.state == "PENDING"
    state = "REQUEUED" if waits and starts else job.state
    # A waiting job was started as often as it has attempts; one that runs has its present start among them.
    restarts = max(0, len(starts) - (not waits)) if starts else 0
    reason = job.reason if waits and job.reason != "None" else ""
    return _row(
        job.job, job.run, state=state, reason=reason, active=True, nodes=job.nodes, elapsed=job.elapsed, restarts=restarts
    )


def _left(job: Submitted, state: str | None) -> Listed:
    """A job that is not in the queue: the run folder knows best how it ended, since a requeue ends a job too."""
    run = Path(job.run)
    starts = [attempt for attempt in run_state.read(run) if attempt.job == job.job]
    last = starts[-1] if starts else None
    shown, reason = _end(run, last, state)
    seconds = (_time(last.end) - _time(last.start)).total_seconds() if last is not None and last.end else None
    elapsed = "" if seconds is None else _elapsed(int(seconds))
    restarts = max(0, len(starts) - 1)
    nodes = str(job.nodes)
    return _row(job.job, job.run, state=shown, reason=reason, active=False, nodes=nodes, elapsed=elapsed, restarts=restarts)


def _end(run: Path, last: run_state.Attempt | None, state: str | None) -> tuple[str, str]:
    """State and reason of a job that has left the queue."""
    if (run / "thresholds.json").is_file():
        return "COMPLETED", ""
    if (run / "failure.json").is_file():
        return "FAILED", _first_line(run / "failure.json")
    outcome = last.outcome if last is not None else None
    if outcome in _FINAL:
        return _FINAL[outcome], ""
    # The script's last word is a restart that did not come; Slurm knows why, and so does the one who cancelled it.
    if state is not None and state not in ("COMPLETED", "COMPLETING"):
        return state, f"{outcome}, and not started again" if state == "FAILED" and outcome is not None else ""
    if (run / "slurm" / "stop").exists():
        return "CANCELLED", ""
    return ENDED, outcome or ""


def _row(job: str, run: str, *, state: str, reason: str, active: bool, nodes: str, elapsed: str, restarts: int) -> Listed:
    far = progress.read(Path(run))
    log = str(log_path(run, job))
    return Listed(job, run, state, reason, active, nodes, elapsed, far.step, far.epoch, far.loss, restarts, log)


def _first_line(failure: Path) -> str:
    try:
        return str(json.loads(failure.read_text(encoding="utf-8"))["lines"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def _elapsed(seconds: int) -> str:
    """As squeue writes it: ``d-hh:mm:ss`` without the leading parts that are zero."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def cancel(job: str, run: Path, signal: str | None) -> str:
    """End a job; its batch script is told that this was wanted, so that it does not requeue what it sees end.

    Args:
        job: its id.
        run: its run folder.
        signal: sent to the ranks in place of ending the job, such as USR1, after which they save and stop.

    Returns:
        What was done, for the user.

    Raises:
        UserError: if the job is not in the queue.
        Failure: if Slurm refuses.
    """
    found = state_of(job)
    if found is None:
        raise UserError(f"{job}: not in the queue; `vigil jobs` says how it ended")
    stop = run / "slurm" / "stop"
    try:
        stop.touch()
    except OSError as error:
        raise Failure(f"{stop}: cannot be written, and without it the job would go on: {error.strerror}") from None
    if signal is None or found.state == "PENDING":
        call("scancel", job)
        return f"cancelled job {job}"
    call("scancel", f"--signal={signal}", job)
    return f"sent {signal} to job {job}: it saves a checkpoint and stops"
