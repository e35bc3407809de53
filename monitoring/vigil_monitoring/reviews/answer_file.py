"""The file of decisions that the review page writes: each answer is on disk before the reviewer sees the next question.

An answer is one line, appended and flushed to disk (fsync). A changed answer replaces its line by an atomic rewrite of the file.
`vigil data merge-labels` can read the file at every moment.
"""

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vigil_data.errors import Problems, UserError
from vigil_data.filesystem import locked, sync, why_not_a_file, write_failure, write_file
from vigil_data.importers.table_reader import read_rows
from vigil_data.reviews.decisions import CANNOT_TELL, Decision
from vigil_monitoring.queues.queue import Queue
from vigil_monitoring.reviews.answers import decisions_of

_log = logging.getLogger("vigil.review")


def decision_line(decision: Decision) -> str:
    """Return a decision as a line of JSON."""
    value: Any = CANNOT_TELL if decision.value is None else int(decision.value) if decision.value in (0, 1) else decision.value
    fields: dict[str, Any] = {
        "id": decision.id,
        "label": decision.label,
        "value": value,
        "reviewer": decision.reviewer,
        "time": decision.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "policy_version": decision.policy_version or None,
        "confidence": decision.confidence,
        "adjudicated": decision.adjudicated or None,
        "minutes": decision.minutes,
    }
    return json.dumps({name: of for name, of in fields.items() if of is not None}, ensure_ascii=False) + "\n"


class AnswerFile:
    """The decisions of a file, by what a reviewer may answer once; made by :func:`open_answers`."""

    def __init__(self, path: Path, decisions: list[Decision]) -> None:
        self._path = path
        self._decisions = {of.key: of for of in decisions}
        self._lines = {of.key: decision_line(of) for of in decisions}  # a changed answer writes all of them
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._decisions)

    def get(self, key: tuple[Any, ...]) -> Decision | None:
        """Return the decision with a key, if there is one."""
        return self._decisions.get(key)

    @property
    def by_key(self) -> Mapping[tuple[Any, ...], Decision]:
        """All decisions, by what a reviewer may answer once."""
        return self._decisions

    def add(self, decisions: Iterable[Decision]) -> None:
        """Store decisions in one atomic step; those with a key that is stored replace it.

        Raises:
            Failure: if the file cannot be written; it is unchanged then.
        """
        with self._lock:
            given = {of.key: of for of in decisions}
            self._rewrite({**self._decisions, **given}, {**self._lines, **{key: decision_line(of) for key, of in given.items()}})

    def put(self, decision: Decision) -> None:
        """Store a decision durably; it replaces the earlier one with its key.

        Raises:
            Failure: if the file cannot be written, such as on a full disk; it is unchanged then.
        """
        with self._lock:
            key, line = decision.key, decision_line(decision)
            if key in self._decisions:
                self._rewrite({**self._decisions, key: decision}, {**self._lines, key: line})
            else:
                self._append(line.encode())
                self._decisions[key], self._lines[key] = decision, line

    def remove(self, key: tuple[Any, ...]) -> None:
        """Remove a decision durably, if there is one.

        Raises:
            Failure: if the file cannot be written; it is unchanged then.
        """
        with self._lock:
            if key in self._decisions:
                decisions, lines = dict(self._decisions), dict(self._lines)
                del decisions[key], lines[key]
                self._rewrite(decisions, lines)

    def _rewrite(self, decisions: dict[tuple[Any, ...], Decision], lines: dict[tuple[Any, ...], str]) -> None:
        write_file(self._path, "".join(lines.values()))
        self._decisions, self._lines = decisions, lines

    def _append(self, line: bytes) -> None:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    while line:  # a disk that is nearly full takes a part, and raises at the rest
                        line = line[os.write(descriptor, line) :]
                    os.fsync(descriptor)
                except OSError:
                    with suppress(OSError):
                        os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_failure(self._path, error) from error


@contextmanager
def open_answers(path: Path, queue: Queue) -> Iterator[AnswerFile]:
    """Open a file of decisions about a queue, or make it; no other process writes to it while the block runs.

    A last line that a power cut left incomplete is removed, with a warning.

    Args:
        path: the file, ``.jsonl``.
        queue: the queue that is reviewed.

    Raises:
        UserError: if another process has it open, or it has decisions that are not about this queue.
        Failure: if it cannot be made.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"--to {path}: the name of a file of answers ends in .jsonl")
    busy = f"{path}: {{owner}} writes to it; let all reviewers use its page, or write to another file and merge both later"
    with locked(path.with_name(f".{path.name}.lock"), busy):
        yield AnswerFile(path, _read(path, queue))


def _read(path: Path, queue: Queue) -> list[Decision]:
    try:
        path.touch()
        if why := why_not_a_file(path):
            raise UserError(f"{path} {why}")
        content = path.read_bytes()
        whole, newline, rest = content.rpartition(b"\n")
        if rest and not _is_json(rest):
            _log.warning("%s: removed an incomplete last line of %d bytes", path, len(rest))
            os.truncate(path, len(whole) + len(newline))
        elif rest:
            with path.open("ab") as file:
                file.write(b"\n")
        sync(path)
        sync(path.parent)
    except OSError as error:
        raise write_failure(path, error) from error
    problems = Problems()
    rows = list(read_rows(path, problems))
    return decisions_of(rows, problems, path, queue) if rows or problems else []


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
