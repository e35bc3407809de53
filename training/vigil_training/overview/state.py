"""State of a run as its folder records it: running, finished, or how its last start ended."""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vigil_slurm.run_state import Attempt, read_attempts
from vigil_training.runs.starts import Start, read_starts, this_machine

STALE_SECONDS = 1800.0
"""Time without a sign of life after which a run on another machine counts as stale."""

STATES = ("running", "finished", "failed", "preempted", "interrupted", "stopped", "killed", "stale", "new", "broken")
"""All states, in the order of the page."""

_SIGNS_OF_LIFE = ("metrics.jsonl", "train.log", "checkpoints")
_SLURM_STATES = {"stopped": "stopped", "gave-up": "failed", "failed": "failed", "killed": "killed", "unexplained": "killed"}
"""Outcome of a Slurm job that the ranks themselves could not record, to the state that is shown."""


@dataclass(frozen=True, slots=True)
class RunState:
    """State of a run.

    Attributes:
        name: one of :data:`STATES`.
        reason: why it failed, was stopped, or counts as running; empty if there is nothing to add.
        started: time of the first start; ``None`` if unknown.
        seconds: time that all starts took together; ``None`` if unknown.
    """

    name: str
    reason: str = ""
    started: datetime | None = None
    seconds: float | None = None


def read_state(folder: Path, now: datetime | None = None) -> RunState:
    """Return the state of a run.

    Args:
        folder: the run folder.
        now: the time (default: the present time).
    """
    now = now or datetime.now(UTC)
    starts, last_sign = read_starts(folder), _last_sign_of_life(folder)
    name, reason = _name_and_reason(folder, starts, last_sign, now)
    if not starts:
        return RunState(name, reason)
    last_end = now if name == "running" else max(last_sign or starts[-1].start, starts[-1].start)
    # A start that was killed ended before the next one began; how long before is not known.
    nexts = [start.start for start in starts[1:]]
    seconds = sum(
        ((start.end or (last_end if after is None else min(after, last_sign or after))) - start.start).total_seconds()
        for start, after in zip(starts, [*nexts, None], strict=True)
    )
    return RunState(name, reason, starts[0].start, max(seconds, 0.0))


def _name_and_reason(folder: Path, starts: list[Start], last_sign: datetime | None, now: datetime) -> tuple[str, str]:
    if not (folder / "resolved.yaml").is_file():
        return "broken", "resolved.yaml is missing"
    if (folder / "thresholds.json").is_file() or (folder / "retrieval.json").is_file():
        return "finished", ""
    if (reason := _failure(folder)) is not None:
        return "failed", reason
    if starts:
        return _end_under_slurm(folder, starts[-1]) or _last_start(starts[-1], last_sign, now)
    if last_sign is None:
        return "new", "submitted" if (folder / "job.sh").is_file() else "not started"
    return ("running", "") if _recent(last_sign, now) else ("stale", f"no sign of life since {_shown(last_sign)}")


def _last_start(last: Start, last_sign: datetime | None, now: datetime) -> tuple[str, str]:
    if last.outcome is not None:
        return last.outcome, last.reason
    if last.machine is not None and last.machine == this_machine():
        return ("running", f"process {last.pid}") if _is_alive(last.pid) else ("killed", f"process {last.pid} is gone")
    sign = max(last_sign or last.start, last.start)
    if _recent(sign, now):
        return "running", f"on {last.host}"
    return "stale", f"no sign of life from {last.host} since {_shown(sign)}"


def _failure(folder: Path) -> str | None:
    """Return the first line of ``failure.json``; ``None`` if it is absent."""
    try:
        return str(json.loads((folder / "failure.json").read_text(encoding="utf-8"))["lines"][0])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError):
        return "failure.json cannot be read"


def _end_under_slurm(folder: Path, last: Start) -> tuple[str, str] | None:
    """Return how the last Slurm job ended, if it ended the last start and the ranks could not record why."""
    attempt: Attempt | None = next(iter(read_attempts(folder)[-1:]), None)
    if attempt is None or attempt.end is None or attempt.outcome not in _SLURM_STATES:
        return None
    try:
        end = datetime.fromisoformat(attempt.end).timestamp()
    except ValueError:
        return None
    if end < last.start.timestamp() - 1:  # Started again, by hand; the job's times are whole seconds.
        return None
    return _SLURM_STATES[attempt.outcome], f"job {attempt.job}: {attempt.outcome}"


def _last_sign_of_life(folder: Path) -> datetime | None:
    times = []
    for name in _SIGNS_OF_LIFE:
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _recent(sign: datetime, now: datetime) -> bool:
    return (now - sign).total_seconds() < STALE_SECONDS


def _shown(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
