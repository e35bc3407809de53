"""Which trials of a sweep have lost their worker.

Its heartbeat is too old, it ended on this machine without saying so, or Slurm has ended its job or started it again elsewhere.
"""

import fcntl
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from vigil_slurm.client import lost_attempts
from vigil_training.runs.starts import boot_id
from vigil_training.sweeps.event_log import EventLog, TrialRecord

SLURM_SECONDS = 15.0
"""A worker asks Slurm at most once in this time; many workers would otherwise slow its controller down."""


def newest_attempt(log: EventLog, trial: TrialRecord) -> int:
    """Return the number of a trial's newest attempt; the events of one that has just been claimed may not be there yet."""
    attempt = max(trial.last, 0)
    while log.claim_path(trial.number, attempt + 1).exists():
        attempt += 1
    return attempt


def heartbeat_age(log: EventLog, number: int, attempt: int) -> float:
    """Return the seconds since the worker that has an attempt showed life.

    A worker compares with its own heartbeat, so that only the clock of the file server counts.
    """
    worker = log.claimant(number, attempt)
    beats = [_modified(log.claim_path(number, attempt)), _modified(log.path(worker)) if worker else None]
    log.beat()
    now = _modified(log.path(log.worker)) or time.time()
    return max(now - max((beat for beat in beats if beat is not None), default=now), 0.0)


def lost_trials(log: EventLog, stale_after: float) -> list[tuple[TrialRecord, int]]:
    """Return the trials that have not ended and have no worker, each with its newest attempt.

    Args:
        log: the events, read.
        stale_after: seconds without a heartbeat after which a worker counts as lost.
    """
    newest = [(trial, newest_attempt(log, trial)) for trial in log.open_trials()]
    held = {number.number: log.claimant(number.number, attempt) or "" for number, attempt in newest}
    dead = dead_workers(log, sorted({worker for worker in held.values() if worker != log.worker}))
    lost = []
    for trial, attempt in newest:
        known = trial.attempts.get(attempt)
        if (known is not None and known.state in ("RELEASED", "WAITING")) or (
            held[trial.number] != log.worker
            and (held[trial.number] in dead or heartbeat_age(log, trial.number, attempt) > stale_after)
        ):
            lost.append((trial, attempt))
    return lost


def dead_workers(log: EventLog, workers: Sequence[str]) -> set[str]:
    """Return the workers that have certainly ended, whatever their heartbeat.

    Args:
        log: the events, read.
        workers: names of workers.
    """
    jobs = {worker: (slurm["job"], slurm["restart"]) for worker in workers if (slurm := log.workers.get(worker, {}).get("slurm"))}
    lost = _lost_attempts(frozenset(jobs.values()), int(time.monotonic() / SLURM_SECONDS))
    return {worker for worker in workers if _has_ended_here(log, worker) or jobs.get(worker) in lost}


@lru_cache(maxsize=1)
def _lost_attempts(jobs: frozenset[tuple[str, int]], _period: int) -> set[tuple[str, int]]:
    """Ask Slurm once in a period."""
    return lost_attempts(jobs)


def _has_ended_here(log: EventLog, worker: str) -> bool:
    """Return whether a worker of this machine has ended: the kernel has released the lock on its file."""
    facts = log.workers.get(worker)
    if facts is None or not facts["locked"] or not facts["boot"] or facts["boot"] != boot_id():
        return False
    try:
        descriptor = os.open(log.path(worker), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
