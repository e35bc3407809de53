"""Events of a sweep: one append-only file for each worker process, merged on reading.

A line is a change of one trial, complete or absent after a kill: ``{"trial": 7, "attempt": 0, "time": 1.7e9, ...}`` with any of

- ``state``: ``RUNNING``, ``WAITING``, ``COMPLETE``, ``PRUNED``, ``FAIL``, or ``RELEASED`` (any worker may continue the
  trial), and ``values``
- ``params``: name to internal value and distribution as JSON
- ``intermediate``: step to value
- ``user`` and ``system``: attributes

or a change of the sweep (``user`` and ``system`` without ``trial``), or the worker's first line (``worker``).

Trials are numbered by claims: attempt k of trial n belongs to the worker that made ``claims/N-K`` (``O_EXCL``, one winner also on
NFS 3 and later), and only numbers without a gap are claimed. All events of an attempt are in the file of one worker, and attempts
are merged in order, so that every reader gets the same trials in whatever order it reads the files.
"""

import errno
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vigil_data.filesystem import sync, write_failure
from vigil_training.distributed.preemption import Preempted
from vigil_training.runs.starts import boot_id

ENDED = ("COMPLETE", "PRUNED", "FAIL")
"""States in which a trial does not change any more."""


class TrialLostError(Preempted):
    """Another worker has taken this trial over, because this one did not show life for too long."""


@dataclass(slots=True)
class Attempt:
    """What one worker wrote about a trial."""

    worker: str
    state: str = "RUNNING"
    values: list[float] | None = None
    started: float | None = None
    ended: float | None = None
    params: dict[str, tuple[float, str]] = field(default_factory=dict)
    intermediate: dict[int, float] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply an event; one after the attempt's end changes nothing."""
        if self.state in ENDED:
            return
        if (state := event.get("state")) is not None:
            self.state = state
            if state == "RUNNING":
                self.started = event["time"]
            elif state in ENDED:
                self.ended = event["time"]
        if event.get("values") is not None:
            self.values = event["values"]
        if event.get("started") is not None:
            self.started = event["started"]
        if event.get("ended") is not None:
            self.ended = event["ended"]
        self.params |= {name: (value, distribution) for name, (value, distribution) in event.get("params", {}).items()}
        self.intermediate |= {int(step): value for step, value in event.get("intermediate", {}).items()}
        self.user |= event.get("user", {})
        self.system |= event.get("system", {})


@dataclass(slots=True)
class TrialRecord:
    """A trial, merged from its attempts.

    Attributes:
        number: from 0, without gaps.
        attempts: by number; one that was claimed and has no event yet is absent.
    """

    number: int
    attempts: dict[int, Attempt] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """Number of the newest attempt that is known, -1 for a trial that was claimed and has no event yet."""
        return max(self.attempts, default=-1)

    @property
    def deciding(self) -> Attempt | None:
        """The attempt that has the state: the newest that ended the trial, or else the newest."""
        newest_first = [self.attempts[k] for k in sorted(self.attempts, reverse=True)]
        return next((attempt for attempt in newest_first if attempt.state in ENDED), next(iter(newest_first), None))

    @property
    def state(self) -> str:
        """One of the states of events; RUNNING for a trial that was claimed and has no event yet."""
        return "RUNNING" if (attempt := self.deciding) is None else attempt.state

    @property
    def ended(self) -> bool:
        """Whether the trial has its result."""
        return self.state in ENDED

    @property
    def values(self) -> list[float] | None:
        """Values of the metrics."""
        return None if (attempt := self.deciding) is None else attempt.values

    @property
    def losses(self) -> int:
        """How often a worker was lost: attempts after which another followed, though they were neither released nor waiting."""
        # One without an event: its worker ended between claim and event.
        return sum(k not in self.attempts or self.attempts[k].state == "RUNNING" for k in range(self.last))

    def merged(self, what: str) -> dict[Any, Any]:
        """Return ``params``, ``intermediate``, ``user`` or ``system`` of all attempts, newer ones over older ones."""
        together: dict[Any, Any] = {}
        for number in sorted(self.attempts):
            together |= getattr(self.attempts[number], what)
        return together


class EventLog:
    """The events of a sweep folder: reads those of all workers, and appends this worker's.

    Reading takes no lock. An instance may be used by several threads, and appends only after :meth:`claim` or :meth:`open`.

    Args:
        folder: the sweep folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.trials: list[TrialRecord] = []
        self.workers: dict[str, dict[str, Any]] = {}
        self.user: dict[str, Any] = {}
        self.system: dict[str, Any] = {}
        self.changed: set[int] = set()
        self._study_times: dict[tuple[str, str], tuple[float, str]] = {}
        self._offsets: dict[str, int] = {}
        self._descriptor: int | None = None
        self.worker = f"{platform.node().split('.')[0] or 'host'}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def path(self, worker: str) -> Path:
        """Return the file of a worker."""
        return self.folder / "events" / f"{worker}.jsonl"

    def claim_path(self, number: int, attempt: int) -> Path:
        """Return the file that gives an attempt to one worker; it holds the worker's name."""
        return self.folder / "claims" / f"{number:04}-{attempt}"

    def open(self, **facts: Any) -> None:
        """Open this worker's file, with facts for those who look whether it lives; the file is locked as long as it does."""
        with self.lock:
            if self._descriptor is not None:
                return
            path = self.path(self.worker)
            try:
                for folder in (path.parent, self.folder / "claims"):
                    folder.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
                locked = _lock(self._descriptor)
                sync(path.parent)
            except OSError as error:
                raise write_failure(path, error) from error
            own = {"host": platform.node(), "boot": boot_id(), "pid": os.getpid(), "locked": locked}
            self._append({"worker": {**own, **facts}})

    def close(self) -> None:
        """Close this worker's file, which tells others on this machine that the worker has ended."""
        with self.lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def beat(self) -> None:
        """Show life: set the modification time of this worker's file, by the clock of the file server."""
        with self.lock, suppress(OSError):
            if self._descriptor is not None:
                os.utime(self.path(self.worker))

    def claim(self, number: int, attempt: int) -> bool:
        """Claim an attempt of a trial, and return whether this worker has it now."""
        self.open()
        path = self.claim_path(number, attempt)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            raise write_failure(path, error) from error
        try:
            os.write(descriptor, self.worker.encode())
            os.fsync(descriptor)
            sync(path.parent)
        except OSError as error:
            raise write_failure(path, error) from error
        finally:
            os.close(descriptor)
        return True

    def claimant(self, number: int, attempt: int) -> str | None:
        """Return who claimed an attempt; empty if the worker was killed before it wrote its name, ``None`` if nobody did."""
        try:
            return self.claim_path(number, attempt).read_text()
        except FileNotFoundError:
            return None

    def write(self, number: int, attempt: int, change: Mapping[str, Any]) -> None:
        """Append a change of a trial that this worker has claimed.

        Raises:
            TrialLostError: if another worker has claimed the next attempt.
            Failure: if the file cannot be written.
        """
        with self.lock:
            if self.claim_path(number, attempt + 1).exists():
                raise TrialLostError(f"{self.folder}: trial {number} was taken over by {self.claimant(number, attempt + 1)}")
            self._append({"trial": number, "attempt": attempt, **change})
            self.read()

    def write_study(self, change: Mapping[str, Any]) -> None:
        """Append a change of the sweep's attributes."""
        with self.lock:
            self.open()
            self._append(change)
            self.read()

    def read(self) -> None:
        """Read what all workers have appended; a line without its end, such as a kill leaves, is not read."""
        with self.lock:
            for path in sorted((self.folder / "events").glob("*.jsonl")):
                offset = self._offsets.get(path.stem, 0)
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
                complete = data[: data.rfind(b"\n") + 1]
                self._offsets[path.stem] = offset + len(complete)
                for line in complete.splitlines():
                    with suppress(ValueError):  # A machine that lost its power may leave a block of zeros.
                        self._apply(path.stem, json.loads(line))

    def read_claims(self) -> None:
        """Look for a trial that was claimed by a worker which has written nothing about it: the next number, if it is claimed."""
        with self.lock:
            while self.claim_path(len(self.trials), 0).exists():
                self._extend(len(self.trials))

    def _append(self, event: Mapping[str, Any]) -> None:
        assert self._descriptor is not None
        line = (json.dumps({**event, "time": time.time()}, ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise write_failure(self.path(self.worker), error) from error

    def _apply(self, worker: str, event: dict[str, Any]) -> None:
        if "worker" in event:
            self.workers[worker] = event["worker"]
        if (number := event.get("trial")) is not None:
            self._extend(number)
            self.trials[number].attempts.setdefault(event["attempt"], Attempt(worker)).apply(event)
            self.changed.add(number)
            return
        for kind, attributes in (("user", self.user), ("system", self.system)):
            for key, value in event.get(kind, {}).items():
                written = (event["time"], worker)
                if written >= self._study_times.get((kind, key), (0.0, "")):
                    self._study_times[kind, key] = written
                    attributes[key] = value

    def _extend(self, number: int) -> None:
        while len(self.trials) <= number:
            self.changed.add(len(self.trials))
            self.trials.append(TrialRecord(len(self.trials)))

    def open_trials(self) -> Iterator[TrialRecord]:
        """Yield the trials that have not ended."""
        return (trial for trial in self.trials if not trial.ended)


def _lock(descriptor: int) -> bool:
    """Lock a worker's file, and return whether that worked: some file systems have no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
