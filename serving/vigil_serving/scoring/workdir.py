"""Work folder next to the output: locked by one process, for one job, and removed at the end."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import locked, recover_file, recover_folder, remove, write_file
from vigil_serving.scoring.job_spec import ShardedRows
from vigil_serving.scoring.shards import Job, Shards

_JOB = "job.json"
_LOG = "log.name"
_LOCK = "lock"
_PARTIAL = ".*.partial*"


def workdir_path(to: Path) -> Path:
    """Return the folder in which an output's shards are kept until the output is complete."""
    return to.with_name(f".{to.name}.shards")


@contextmanager
def open_workdir(to: Path, job: Job, *, restart: bool) -> Iterator[Shards[Job]]:
    """Lock the work folder of an output; shards that a killed process of the same job wrote are kept.

    Args:
        to: the output.
        job: the job.
        restart: discard existing shards.

    Raises:
        UserError: if another process writes the same output, or existing shards are of another job.
        Failure: if the folder cannot be made.
    """
    folder = workdir_path(to)
    with locked(folder / _LOCK, f"{to}: {{owner}} is writing it; wait until it ends, or name another output"):
        try:
            if restart:
                _empty(folder)
            _check_job(folder, job)
            for partial in folder.glob(_PARTIAL):
                remove(partial)
            recover_file(to)
            recover_folder(to)
            yield Shards(folder, job)
        finally:
            if not any(folder.glob("[0-9]*.shard")):
                remove_workdir(folder)


def log_name(folder: Path) -> str:
    """Return the name of the job's file in a traffic log, which stays the same when the job resumes.

    Raises:
        Failure: if it cannot be written.
    """
    file = folder / _LOG
    if not file.exists():
        write_file(file, f"part-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}.parquet")
    return file.read_text(encoding="utf-8")


def remove_workdir(folder: Path) -> None:
    """Remove the files of a job, the lock last; the folder too, unless it has other files."""
    _empty(folder)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _check_job(folder: Path, job: ShardedRows) -> None:
    file = folder / _JOB
    if not file.exists():
        job.write(file)
        return
    kept = type(job).read(file)
    if kept != job:
        count = sum(1 for _ in folder.glob("[0-9]*.shard"))
        raise UserError(
            f"{folder}: has {count} of {kept.shards} shards of another job: {'; '.join(job.differences(kept))}; "
            "run the same command as before to resume it, or discard its shards with --restart"
        )


def _empty(folder: Path) -> None:
    for pattern in (
        "[0-9]*.shard",
        _PARTIAL,
        _LOG,
        _JOB,
    ):  # the log's name before another job can take it
        for path in folder.glob(pattern):
            remove(path)
