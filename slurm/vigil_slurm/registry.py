"""Registry of the jobs that this user submitted, so that ended jobs are known without Slurm's accounting."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vigil_data.errors import Failure


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job at its submission.

    Attributes:
        job: id; for a task of an array as Slurm shows it, such as ``12_3``.
        run: run folder, absolute.
        time: time of submission, ISO 8601.
        nodes: number of nodes requested.
    """

    job: str
    run: str
    time: str
    nodes: int


def registry_path(environment: Mapping[str, str] | None = None) -> Path:
    """Return the path of the registry, by the XDG Base Directory Specification: one JSON object a line."""
    environment = os.environ if environment is None else environment
    home = environment.get("XDG_STATE_HOME") or Path(environment.get("HOME") or "~").expanduser() / ".local" / "state"
    return Path(home) / "vigil" / "jobs.jsonl"


def register_jobs(jobs: Sequence[SubmittedJob]) -> None:
    """Append jobs to the registry.

    Raises:
        Failure: if the file cannot be written.
    """
    path = registry_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(asdict(job)) + "\n" for job in jobs))
    except OSError as error:
        raise Failure(f"{path}: cannot be written, so `vigil jobs` will forget the job when it ends: {error.strerror}") from None


def read_registry() -> list[SubmittedJob]:
    """Return all registered jobs, the oldest first; incomplete lines, which another process may be writing, are skipped."""
    path = registry_path()
    if not path.is_file():
        return []
    jobs = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            jobs.append(SubmittedJob(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return jobs
