"""The ledger of lineage: ``WORKSPACE/.vigil/lineage``, append-only JSON lines, one file for each process that writes.

A writer appends whole lines to its own file and flushes each to disk; a reader takes no lock. Thus a kill loses at most the event
that was being written, and processes and hosts that share a file system never wait for each other. A ledger that cannot be
written is reported once and stops nothing.

Example:
    >>> record(Node("policy", digest, "v3", "/w/policy.json"), [Input("evaluation", of, "predictions")])
    >>> [event.node.kind for event in read_events()]
    ['policy']
"""

import errno
import logging
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sync
from vigil_data.lineage.events import Event, Input, Node
from vigil_data.lineage.invocation import command_line, current_user

FOLDER = Path(".vigil", "lineage")
"""The ledger, in a workspace."""

WORKSPACE = "VIGIL_WORKSPACE"
"""Environment variable that names the workspace."""

_log = logging.getLogger("vigil.lineage")
_lock = threading.Lock()


class _Writer(NamedTuple):
    process: int
    ledger: Path
    file: Path


_writers: list[_Writer] = []
"""The file of this process, if it has written one; a child that was forked makes its own."""

_warned: set[Path] = set()


def workspace() -> Path:
    """Return the workspace: ``VIGIL_WORKSPACE``, else the nearest folder with ``.vigil`` above the current one, else that one."""
    if given := os.environ.get(WORKSPACE, "").strip():
        return Path(given).absolute()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".vigil").is_dir()), here)


def record(node: Node, inputs: Sequence[Input | Node] = (), *, command: str | None = None) -> None:
    """Append the event that a node was made; whatever prevents it is reported once, as a warning, and raises nothing.

    Args:
        node: what was made.
        inputs: what it was made from; a node takes its kind as role.
        command: the command (default: that of this process, without values that name items).
    """
    given = tuple(of.as_input(of.kind) if isinstance(of, Node) else of for of in inputs)
    event = Event(
        datetime.now(UTC).isoformat(timespec="microseconds"),
        current_user(),
        command_line(names=False) if command is None else command,
        node,
        tuple(of for of in given if of.key != node.key),
    )
    line = event.to_line()
    with _lock:
        ledger = workspace() / FOLDER
        try:
            _append(_own_file(ledger), line)
        except OSError as error:
            _writers.clear()  # a line that was cut off stays the last one of its file
            if ledger not in _warned:
                _warned.add(ledger)
                _log.warning(
                    "%s: lineage is not recorded: %s; make it writable, or name another folder with %s",
                    ledger,
                    error.strerror or error,
                    WORKSPACE,
                )


def read_events(of: StrPath | None = None) -> Iterator[Event]:
    """Yield the events of all files of a ledger, each file's in order; a last line that was cut off is ignored.

    Args:
        of: the workspace (default: :func:`workspace`).

    Raises:
        UserError: for a line that is no event, with its position.
    """
    ledger = (workspace() if of is None else Path(of)) / FOLDER
    for file in sorted(ledger.glob("*.jsonl")):
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
        for number, line in enumerate(lines[:-1], 1):
            try:
                yield Event.from_line(line)
            except ValueError as error:
                raise UserError(f"{file}:{number}: {error}; restore the file, or remove the line") from None


def _own_file(ledger: Path) -> Path:
    """Return the file of this process in a ledger, made at its first event."""
    if not _writers or _writers[0][:2] != (os.getpid(), ledger):
        _writers.clear()
        ledger.mkdir(parents=True, exist_ok=True)
        host = re.sub(r"[^\w.-]", "_", socket.gethostname())
        file = ledger / f"{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        sync(ledger)
        _writers.append(_Writer(os.getpid(), ledger, file))
    return _writers[0].file


def _append(file: Path, line: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
