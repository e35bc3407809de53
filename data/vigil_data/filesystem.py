"""Atomic writes, locks, hashes and fsync: the only module that renames files or folders into place.

A file or folder written here is complete or absent, also after a kill or a power cut. Standard library only.

Example:
    >>> write_file(Path("thresholds.json"), '{"spam": 0.5}')
    >>> with replaced_folder(Path("bundle")) as partial:
    ...     (partial / "README.md").write_text("...")
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from vigil_data.errors import Failure, UserError

StrPath = str | os.PathLike[str]
"""A path, as every public function takes it."""


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically and durably; text is encoded as UTF-8.

    Args:
        path: the file; an older one is replaced.
        content: all of it.

    Raises:
        Failure: if it cannot be written, such as on a full disk; an older file is unchanged then.
    """
    with replaced_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically and durably.

    Raises:
        ValueError: if it holds NaN or infinity, which JSON lacks.
        Failure: see :func:`write_file`.
    """
    write_file(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return ``value`` as indented UTF-8 JSON with a final newline; NaN raises ValueError."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; one that is there already is kept.

    Raises:
        UserError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created: {error.strerror}") from None


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder that replaces ``path`` if the block succeeds, for libraries that write files.

    Args:
        path: the file; an older one is replaced.

    Raises:
        Failure: if it cannot be written; an older file is unchanged then.
    """
    # The suffix is kept, since some libraries choose the format by it; the leading dot hides the file from globs.
    partial = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.partial{path.suffix}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replaced_folder(to: Path, *, replaces: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Give an empty folder next to ``to`` that takes its place if the block succeeds.

    Args:
        to: the folder to make; its parents are made. It may exist if it is empty or if ``replaces`` accepts it.
        replaces: whether an older folder at ``to`` may be replaced.

    Raises:
        UserError: if something else is at ``to``.
        Failure: if a file cannot be written.
    """
    to = to.resolve()
    occupied = to.is_file() or (to.is_dir() and any(to.iterdir()))
    if occupied and not (to.is_dir() and replaces(to)):
        raise UserError(f"{to}: already exists; name a new folder")
    partial, former = (to.with_name(f".{to.name}.{os.getpid()}.{kind}") for kind in ("partial", "former"))
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        partial.mkdir()
        yield partial
        sync_tree(partial)
        if occupied:
            to.rename(former)
        partial.rename(to)
        sync(to.parent)
    except OSError as error:
        raise write_failure(to, error) from error
    finally:
        if former.exists() and not to.exists():
            former.rename(to)
        remove(partial)
        remove(former)


def recover_file(path: Path) -> None:
    """Remove temporary files that a kill during :func:`replaced_file` left.

    Call it only under a lock that excludes other writers of ``path``.
    """
    for partial in path.parent.glob(f".{glob.escape(path.stem)}.????????.partial{path.suffix}"):
        remove(partial)


def recover_folder(to: Path) -> None:
    """Undo what a kill during :func:`replaced_folder` left: put the former folder back, remove the partial one.

    Call it only under a lock that excludes other writers of ``to``.
    """
    to = to.resolve()
    for former in sorted(to.parent.glob(f".{to.name}.*.former")):
        if not to.exists():
            former.rename(to)
    for rest in [*to.parent.glob(f".{to.name}.*.partial"), *to.parent.glob(f".{to.name}.*.former")]:
        remove(rest)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs; the lock of a process that died is free.

    Args:
        path: the lock file; it is made, with its parents, and may be removed within the block.
        busy: error message if another process holds the lock; ``{owner}`` in it becomes the process and its host.

    Raises:
        UserError: if another process holds it.
        Failure: if the file cannot be made.
    """
    descriptor = _lock(path, busy)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, busy: str) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        except OSError as error:
            raise write_failure(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return descriptor
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise UserError(busy.replace("{owner}", owner)) from None
        except OSError as error:
            os.close(descriptor)
            raise write_failure(path, error) from error
        os.close(descriptor)


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for top, _, names in os.walk(folder):
        for name in names:
            if not (file := Path(top) / name).is_symlink():
                sync(file)
        sync(Path(top))


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def why_not_a_file(path: Path) -> str | None:
    """Return why a path is not a regular file, such as ``does not exist`` or ``is a pipe, not a file``; ``None`` if it is one.

    Nothing is opened, so that a pipe does not block and a device is not touched.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return why_no_status(path, error)
    return None if stat.S_ISREG(mode) else not_regular(mode)


def why_no_status(path: Path, error: OSError) -> str:
    """Return why the status of a path cannot be read, from the error."""
    if error.errno == errno.ELOOP:
        return "is a loop of symbolic links"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"is a symbolic link to {path.readlink()}, which does not exist" if path.is_symlink() else "does not exist"
    return f"cannot be read: {error.strerror}"


def not_regular(mode: int) -> str:
    """Return what a file system entry is that is not a regular file, from its mode."""
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'a special file')}, not a file"


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value in its canonical form (sorted keys)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def link_or_copy(source: str | Path, to: str | Path) -> None:
    """Make a hard link, or a copy where the file system has no hard links."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_failure(path: Path, error: OSError) -> Failure:
    """Return the error for a path that cannot be written."""
    hint = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return Failure(f"{path}: cannot be written: {(os.strerror(error.errno) if error.errno else str(error))}{hint}")
