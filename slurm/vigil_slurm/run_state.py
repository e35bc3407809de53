"""State of a run as its folder records it: starts and ends of its jobs, and how far training is."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16
"""Bytes read from the end of metrics.jsonl; a validation line with a hundred labels takes a tenth of that."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a job.

    Attributes:
        job: id.
        restart: number of requeues before this start.
        nodes: nodes on which it ran.
        start: time of the start, ISO 8601.
        end: time of the end, ISO 8601; ``None`` while it runs and if it was cut off.
        status: exit status of the ranks.
        outcome: finished, failed, stopped, preempted, killed, unexplained or gave-up.
    """

    job: str
    restart: int
    nodes: str
    start: str
    end: str | None = None
    status: int | None = None
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Last recorded values of a run; ``None`` for values not recorded yet.

    Attributes:
        step: optimizer steps done.
        epoch: epoch, from 0.
        loss: training loss.
    """

    step: int | None = None
    epoch: int | None = None
    loss: float | None = None


def read_attempts(run: str | PathLike[str]) -> list[Attempt]:
    """Return the starts of a run's jobs, the oldest first, from ``slurm/attempts.jsonl``; incomplete lines are skipped."""
    file = Path(run) / "slurm" / "attempts.jsonl"
    found: dict[tuple[str, int], Attempt] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            event = json.loads(line)
            key = (event["job"], event["restart"])
            if event["event"] == "start":
                found[key] = Attempt(*key, event["nodes"], event["time"])
            elif key in found:
                start = found[key]
                found[key] = Attempt(*key, start.nodes, start.start, event["time"], event["status"], event["outcome"])
        except (ValueError, TypeError, KeyError):
            continue
    return list(found.values())


def read_progress(run: str | PathLike[str]) -> RunProgress:
    """Return the progress of a run, from the end of its ``metrics.jsonl``."""
    last: dict[str, Any] = {"step": None, "epoch": None, "train/loss": None}
    for record in read_last_metrics(run):
        last = {key: record.get(key) if value is None else value for key, value in last.items()}
        if None not in last.values():
            break
    return RunProgress(last["step"], None if last["epoch"] is None else int(last["epoch"]), last["train/loss"])


def read_last_metrics(run: str | PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the last lines of a run's ``metrics.jsonl``, the newest first; none if it is absent. Incomplete lines are skipped."""
    try:
        with (Path(run) / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
