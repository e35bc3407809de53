"""The starts and ends of a run's jobs, as its batch scripts wrote them in ``slurm/attempts.jsonl``."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a job.

    Attributes:
        job: its id.
        restart: how often it was requeued before.
        nodes: where it ran.
        start: when, ISO 8601.
        end: likewise; ``None`` while it runs and where it was cut off.
        status: with which it ended.
        outcome: finished, failed, stopped, preempted, killed, unexplained or gave-up.
    """

    job: str
    restart: int
    nodes: str
    start: str
    end: str | None = None
    status: int | None = None
    outcome: str | None = None


def read(run: Path) -> list[Attempt]:
    """The attempts of a run, the oldest first; lines that are not whole are passed over."""
    file = run / "slurm" / "attempts.jsonl"
    found: dict[tuple[str, int], Attempt] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            said = json.loads(line)
            key = (said["job"], said["restart"])
            if said["event"] == "start":
                found[key] = Attempt(*key, said["nodes"], said["time"])
            elif key in found:
                begun = found[key]
                found[key] = Attempt(*key, begun.nodes, begun.start, said["time"], said["status"], said["outcome"])
        except (ValueError, TypeError, KeyError):
            continue
    return list(found.values())
