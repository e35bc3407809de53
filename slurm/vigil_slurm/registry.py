"""The jobs that this user submitted, one JSON object a line, so that those that ended are known without Slurm's accounting."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vigil_data.errors import Failure


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job as it was submitted.

    Attributes:
        job: its id; of a task of an array as Slurm shows it, such as ``12_3``.
        run: the run folder, absolute.
        time: when, ISO 8601.
        nodes: machines it asked for.
    """

    job: str
    run: str
    time: str
    nodes: int


def path(environment: Mapping[str, str] | None = None) -> Path:
    """The file; see the XDG Base Directory Specification for where it lies."""
    environment = os.environ if environment is None else environment
    home = environment.get("XDG_STATE_HOME") or Path(environment.get("HOME") or "~").expanduser() / ".local" / "state"
    return Path(home) / "vigil" / "jobs.jsonl"


def append(jobs: list[Submitted]) -> None:
    """Write down jobs that Slurm has taken.

    Raises:
        Failure: if the file cannot be written.
    """
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(asdict(job)) + "\n" for job in jobs))
    except OSError as error:
        raise Failure(f"{file}: cannot be written, so `vigil jobs` will forget the job when it ends: {error.strerror}") from None


def read() -> list[Submitted]:
    """All jobs, the oldest first; a line that is not whole is passed over, since another process may be writing it."""
    file = path()
    if not file.is_file():
        return []
    jobs = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            jobs.append(Submitted(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return jobs
