"""``starts.jsonl``: when, where and how each start of a run began and ended.

A start without an end was killed, or still runs.

Example:
    >>> read_starts("runs/demo")[-1].outcome
    'finished'
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from vigil_data.errors import one_line
from vigil_data.filesystem import StrPath
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.world import World

FILE = "starts.jsonl"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a run.

    Attributes:
        token: the token in ``attempt``.
        host: name of the host of rank 0.
        pid: its process.
        machine: as :func:`this_machine` returned there; ``None`` if unknown.
        start: time of the start.
        end: time of the end; ``None`` while it runs and if it was killed.
        outcome: finished, preempted, interrupted or failed; ``None`` without an end.
        reason: first line of the error; empty if it finished.
    """

    token: str
    host: str
    pid: int
    machine: str | None
    start: datetime
    end: datetime | None = None
    outcome: str | None = None
    reason: str = ""


@cache
def boot_id() -> str:
    """Return what distinguishes this start of this machine from others; empty outside Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@cache
def this_machine() -> str | None:
    """Return what distinguishes this machine, since it was booted, and this space of process ids; ``None`` outside Linux."""
    try:
        pid_space = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 (a link that names no file)
    except OSError:
        return None
    return f"{boot_id()} {pid_space}" if boot_id() else None


def record_start(run: StrPath, token: str) -> None:
    """Append the start of a run by this process."""
    facts = {"host": platform.node(), "pid": os.getpid(), "machine": this_machine()}
    _append(Path(run), {"event": "start", "token": token, **facts, "time": _now()})


@contextmanager
def record_end(run: StrPath, world: World, token: str) -> Iterator[None]:
    """Append how the block ended, on rank 0; a start that was superseded, or found a finished run, appends nothing.

    Args:
        run: the run folder.
        world: the place of this process.
        token: token of this start.
    """
    outcome, reason = "finished", ""
    try:
        yield
    except BaseException as error:
        known = ((Preempted, "preempted"), (KeyboardInterrupt, "interrupted"))
        outcome = next((name for kind, name in known if isinstance(error, kind)), "failed")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise
    finally:
        with suppress(OSError):
            if world.is_main and (Path(run) / "attempt").read_text(encoding="ascii") == token:
                _append(
                    Path(run), {"event": "end", "token": token, "outcome": outcome, "reason": one_line(reason), "time": _now()}
                )


def read_starts(run: StrPath) -> list[Start]:
    """Return the starts of a run, the oldest first; empty before the first. Incomplete lines are skipped."""
    try:
        lines = (Path(run) / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: dict[str, Start] = {}
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            event = json.loads(line)
            token, time = str(event["token"]), datetime.fromisoformat(event["time"])
            if event["event"] == "start":
                found[token] = Start(token, str(event["host"]), int(event["pid"]), event["machine"], time)
            elif token in found:
                found[token] = replace(found[token], end=time, outcome=str(event["outcome"]), reason=str(event["reason"]))
    return list(found.values())


def _append(run: Path, event: dict[str, Any]) -> None:
    """Append a line in one call; a full disk ends no run here, as it does where it matters."""
    with suppress(OSError):
        descriptor = os.open(run / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(descriptor, (json.dumps(event) + "\n").encode())
        finally:
            os.close(descriptor)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
