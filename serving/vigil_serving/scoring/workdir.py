"""The work folder beside the output: one process at a time, one plan, and nothing of it left in the end."""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vigil_data.errors import Failure, UserError
from vigil_serving.scoring.job_spec import Plan
from vigil_serving.scoring.shards import Parts, sync

_PLAN = "plan.json"
_LOCK = "lock"
_OWN = ("*.part", ".*.partial", _PLAN)


def folder_of(to: Path) -> Path:
    """Where the parts of an output lie until it is whole."""
    return to.with_name(f".{to.name}.parts")


@contextmanager
def opened(to: Path, plan: Plan, *, restart: bool) -> Iterator[Parts]:
    """The parts of an output, for this process alone; what the parts of a killed scoring of the same plan hold is kept.

    Args:
        to: the output.
        plan: what is to be scored.
        restart: throw away the parts that are there.

    Raises:
        UserError: if another process writes the same output, or the parts that are there are of another plan.
        Failure: if the folder cannot be made.
    """
    folder = folder_of(to)
    try:
        lock = _locked(folder, to)
    except OSError as error:
        raise Failure(f"{folder}: cannot be made: {error.strerror}") from None
    try:
        if restart:
            _empty(folder)
        _agree(folder, plan)
        for partial in folder.glob(".*.partial"):
            remove(partial)
        yield Parts(folder, plan)
    finally:
        if not any(folder.glob("*.part")):
            discard(folder)
        os.close(lock)


def discard(folder: Path) -> None:
    """Remove what scoring made, the lock last; the folder as well, unless somebody else has put something into it."""
    _empty(folder)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _locked(folder: Path, to: Path) -> int:
    """An open file that holds the lock; the lock of a process that died is free."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # who held the lock has just ended, and removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise UserError(f"{to}: {who} is writing it; wait for its end, or name another output") from None
        if _is_still(lock, folder / _LOCK):
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return lock
        os.close(lock)


def _is_still(lock: int, path: Path) -> bool:
    """Whether the open file is the one at the path, and not one that was removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _agree(folder: Path, plan: Plan) -> None:
    file = folder / _PLAN
    if file.exists():
        kept = Plan.read(file)
        if kept != plan:
            count = sum(1 for _ in folder.glob("*.part"))
            raise UserError(
                f"{folder}: holds {count} of {kept.parts} parts of another scoring: {'; '.join(plan.differences(kept))}; "
                "ask for the same to go on, or throw them away with --restart"
            )
        return
    partial = folder / ".plan.partial"
    try:
        plan.write(partial)
        sync(partial)
        partial.rename(file)
        sync(folder)
    except OSError as error:
        raise Failure(f"{file}: cannot be written: {error.strerror}") from None


def _empty(folder: Path) -> None:
    for pattern in _OWN:
        for path in folder.glob(pattern):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
