"""Writer of the traffic log, which neither delays nor fails an answer.

:meth:`TrafficLog.offer` only appends to a bounded list. A thread takes what is there twice a second and appends it to a segment,
so that a kill loses less than the last second. Another thread turns segments into Parquet files, recovers those of processes
that have died, and enforces the limits. On a full disk rows wait, as many as fit in the list, and are written when there is room.

Example:
    >>> log = TrafficLog(TrafficLogOptions("traffic", days=30))
    >>> log.offer(items, decisions, Origin("serve", "live", bundle.digest, None, bundle.labels))
    >>> log.close()
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from vigil_data.errors import Failure
from vigil_data.items import Item
from vigil_serving.protocol.errors import traceback_summary
from vigil_serving.runtime.decisions import Decision
from vigil_serving.traffic.folder import ROTATE, make_log_folder
from vigil_serving.traffic.lineage import record_traffic
from vigil_serving.traffic.options import Origin, TrafficLogOptions
from vigil_serving.traffic.records import LoggedDecisions, record_batch
from vigil_serving.traffic.retention import limit_bytes, remove_old_days
from vigil_serving.traffic.segments import Segment, recover

_log = logging.getLogger("vigil.traffic")

FLUSH_SECONDS = 0.5
"""Time between two flushes; with the time to write, what a kill loses stays under a second."""
SEGMENT_SECONDS = 900.0
"""Age at which a segment becomes a Parquet file."""
SEGMENT_BYTES = 64 << 20
"""Size at which a segment becomes a Parquet file."""
UPKEEP_SECONDS = 60.0
"""Time between two attempts to finish segments that could not be finished, and between two checks of the limits."""
REPORT_SECONDS = 60.0
"""Time between two lines about the same trouble."""
MAX_WAITING_ROWS = 50_000
"""Most rows that wait to be written; further ones are dropped."""

_DAY_MICROSECONDS = 86_400_000_000

Count = Literal["rows", "dropped", "failed", "bytes"]
"""What a log counts: rows written, rows dropped, failed writes, and bytes written to segments."""


class TrafficLog:
    """Writes decisions into a folder until :meth:`close`.

    Args:
        options: folder, columns and limits.
        count: called with what happened and how often, from any thread.
        flush_seconds: time between two flushes.
        segment_seconds: age at which a segment becomes a Parquet file.
        segment_bytes: size at which it does (default: 64 MiB, or a sixteenth of a smaller log).
        max_waiting: most rows that wait.
        clock: seconds since 1970.

    Raises:
        UserError: if the folder cannot be made or written, for another reason than a full disk.
    """

    def __init__(
        self,
        options: TrafficLogOptions,
        count: Callable[[Count, int], None] = lambda *_: None,
        *,
        flush_seconds: float = FLUSH_SECONDS,
        segment_seconds: float = SEGMENT_SECONDS,
        segment_bytes: int | None = None,
        max_waiting: int = MAX_WAITING_ROWS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._options, self._count, self._clock = Path(options.folder), options, count, clock
        self._flush_seconds, self._segment_seconds, self._max_waiting = flush_seconds, segment_seconds, max_waiting
        self._segment_bytes = segment_bytes or min(SEGMENT_BYTES, options.max_bytes // 16)
        make_log_folder(self._folder)
        # pyarrow's first array imports more of itself, and pandas if it is there, which would delay the first flush by a second.
        pa.array([""])
        self._lock = threading.Lock()
        self._pending: list[tuple[Origin, int, Sequence[Decision], list[Mapping[str, Any]]]] = []
        self._waiting = 0
        self._unwritten: list[tuple[date, pa.RecordBatch]] = []
        self._segments: dict[tuple[date, tuple[str, ...]], Segment] = {}
        self._rotated = self._rotation()
        self._reported: dict[str, float] = {}
        self._recorded: set[str] = set()
        self._failing = False
        self._closing = threading.Event()
        self._finished: queue.SimpleQueue[Segment | None] = queue.SimpleQueue()
        self._keeper = threading.Thread(target=self._keep, name="traffic-files", daemon=True)
        self._writer = threading.Thread(target=self._write, name="traffic", daemon=True)
        self._keeper.start()
        self._writer.start()

    def offer(self, items: Sequence[Item], decisions: Sequence[Decision], origin: Origin) -> None:
        """Log the decisions on items that were made now, or drop them if too many wait; never waits, never raises.

        Args:
            items: their columns are logged, never their content.
            decisions: the decision on each item.
            origin: what made them.
        """
        now, count = int(self._clock() * 1e6), len(decisions)
        columns = [item.columns for item in items]
        with self._lock:
            fits = self._waiting + count <= self._max_waiting and not self._closing.is_set()
            if fits:
                self._waiting += count
                self._pending.append((origin, now, decisions, columns))
        if not fits:
            self._count("dropped", count)

    def close(self, seconds: float = 10.0) -> None:
        """Write what waits and finish the segments, for at most ``seconds``; the next start finishes what is left."""
        end = time.monotonic() + seconds
        with self._lock:
            self._closing.set()
        self._writer.join(seconds)
        self._keeper.join(max(0.0, end - time.monotonic()))

    def _write(self) -> None:
        """Flush until the log is closed."""
        closing = False
        while not closing:
            closing = self._closing.wait(self._flush_seconds)
            try:
                self._flush()
                self._rotate(everything=closing)
            except Exception as error:  # whatever it is, answers go on
                self._trouble("write", f"failed: {traceback_summary(error)}")
        if self._waiting:
            self._count("dropped", self._waiting)
            _log.error("traffic log %s: %d rows could not be written", self._folder, self._waiting)
        self._finished.put(None)

    def _flush(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
        groups: dict[tuple[date, Origin], LoggedDecisions] = {}
        rows, before = LoggedDecisions(), None
        for origin, microseconds, decisions, columns in pending:
            if (now := (microseconds // _DAY_MICROSECONDS, origin)) != before:
                rows, before = groups.setdefault((_day(microseconds), origin), LoggedDecisions()), now
            rows.microseconds += [microseconds] * len(decisions)
            rows.decisions += decisions
            rows.columns += columns
        for (day, origin), rows in groups.items():
            try:
                self._unwritten.append((day, record_batch(rows, origin, self._options.columns)))
            except Exception as error:
                self._settle(len(rows), "dropped")
                self._trouble("dropped", f"{len(rows)} rows dropped: {traceback_summary(error)}")
        while self._unwritten:
            day, batch = self._unwritten[0]
            try:
                self._count("bytes", self._append(day, batch))
            except OSError as error:
                self._failing = True
                self._count("failed", 1)
                self._trouble(
                    "failing", f"cannot be written: {os.strerror(error.errno or 0)}; {self._waiting} rows wait, answers go on"
                )
                return
            self._unwritten.pop(0)
            self._settle(batch.num_rows, "rows")
        for _, origin in groups:
            self._record(origin)
        if self._failing:
            self._failing = False
            self._reported.pop("failing", None)
            _log.warning("traffic log %s: is written again", self._folder)

    def _record(self, origin: Origin) -> None:
        """Record in the lineage, once for each bundle, that the log has its decisions."""
        if origin.bundle not in self._recorded:
            self._recorded.add(origin.bundle)
            record_traffic(self._folder, origin)

    def _settle(self, rows: int, what: Count) -> None:
        """Count rows that no longer wait."""
        with self._lock:
            self._waiting -= rows
        self._count(what, rows)

    def _append(self, day: date, batch: pa.RecordBatch) -> int:
        key = (day, tuple(batch.schema.names))
        segment = self._segments.get(key)
        if segment is None:
            segment = self._segments[key] = Segment(self._folder, day, batch.schema)
        return segment.append(batch)

    def _rotate(self, *, everything: bool) -> None:
        """Pass segments that are old, large or of a past day on to the other thread; all of them if a reader asks for it."""
        asked, self._rotated = self._rotated != (now := self._rotation()), now
        today, oldest = _day(int(self._clock() * 1e6)), time.monotonic() - self._segment_seconds
        for key, segment in list(self._segments.items()):
            past = segment.day != today or segment.opened < oldest or segment.bytes >= self._segment_bytes
            if everything or asked or past:
                self._finished.put(self._segments.pop(key))

    def _rotation(self) -> int:
        """Return the time of the last request to finish all segments; 0 if there was none."""
        try:
            return (self._folder / ROTATE).stat().st_mtime_ns
        except OSError:
            return 0

    def _keep(self) -> None:
        """Finish segments and enforce the limits until the writer has ended."""
        waiting: list[Segment] = []
        ended, upkeep = False, 0.0
        while not ended:
            with suppress(queue.Empty):
                segment = self._finished.get(timeout=max(0.0, upkeep - time.monotonic()))
                ended = segment is None
                waiting += [] if segment is None else [segment]
            upkeep = time.monotonic() + UPKEEP_SECONDS
            try:
                waiting = [segment for segment in waiting if not self._finish(segment)]
                self._upkeep()
            except Exception as error:  # whatever it is, answers go on
                self._trouble("upkeep", f"upkeep failed: {traceback_summary(error)}")
        for segment in waiting:
            segment.release()

    def _finish(self, segment: Segment) -> bool:
        """Finish a segment; return whether nothing is left to do."""
        try:
            segment.finish()
        except FileNotFoundError:
            self._trouble("lost", f"{segment.file.name} was removed, and {segment.rows} rows with it")
            segment.release()
        except Failure as error:
            self._trouble("finish", f"{error}; the rows stay in {segment.file.name}")
            return False
        return True

    def _upkeep(self) -> None:
        """Recover segments of processes that have died, and remove what is beyond the limits."""
        try:
            if recovered := recover(self._folder):
                _log.info("traffic log %s: recovered %d segments of a process that had died", self._folder, recovered)
        except (Failure, OSError) as error:
            self._trouble("recover", str(error))
        days, most = self._options.days, self._options.max_bytes
        for limit, removed in (
            (f"older than {days} days", remove_old_days(self._folder, days, _day(int(self._clock() * 1e6)))),
            (f"beyond {most:,} bytes", limit_bytes(self._folder, most)),
        ):
            if removed.files:
                _log.info("traffic log %s: removed %s, %s", self._folder, removed, limit)

    def _trouble(self, kind: str, message: str) -> None:
        """Log trouble of a kind, at most once a minute."""
        now = time.monotonic()
        if now - self._reported.get(kind, -REPORT_SECONDS) >= REPORT_SECONDS:
            self._reported[kind] = now
            _log.error("traffic log %s: %s", self._folder, message)


def _day(microseconds: int) -> date:
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).date()
