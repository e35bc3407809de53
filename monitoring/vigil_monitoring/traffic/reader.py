"""Traffic as a stream: a log's decisions day by day, or the rows of any table of scores, in the same columns.

A table of scores is one Parquet file or a folder of them, with ``id`` and ``probability.LABEL``. Every other column of
:mod:`vigil_serving.traffic.schema` is optional: without ``time`` all rows are of one day, the day when the file was written
(:attr:`Traffic.assumed_day`); without ``role`` they are live; without ``labels`` those follow from ``decision.LABEL``, as
`vigil score` writes them.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_monitoring.traffic.exposures import Exposures
from vigil_monitoring.traffic.sources import Source, log_source, table_source
from vigil_serving.traffic.folder import days_of, parts_of
from vigil_serving.traffic.schema import EXPOSURE, PROBABILITY, TIME, TYPES

DECISION = "decision."
LIVE = "live"


class _Defaults(NamedTuple):
    """Values of columns that a table of scores lacks."""

    role: str = LIVE
    source: str = "score"


class Traffic:
    """Decisions of one role in a period; :func:`open_traffic` opens it.

    What is read is what was there when it was opened: rows that a server appends later are not seen, so that several passes
    agree.

    Attributes:
        path: the log or table.
        role: ``live`` or ``shadow``.
        labels: labels of all files, in the order in which they first occur.
        columns: names of the columns that any file has, and of those that every traffic has.
        rows_by_day: day (UTC) to its number of rows, in order; days without rows are absent.
        rows_by_role: role to its number of rows in the period, of other roles too.
        assumed_day: day of all rows of a table without ``time``; else ``None``.
        sources: the files.
    """

    def __init__(
        self,
        path: Path,
        sources: Sequence[Source],
        role: str,
        *,
        assumed_day: date | None,
        exposures: Exposures | None,
        start: date | None,
        end: date | None,
    ) -> None:
        self.path, self.role, self.assumed_day = path, role, assumed_day
        self.sources, self._exposures = sources, exposures
        names = dict.fromkeys(name for source in sources for name in source.schema.names)
        self.labels = tuple(name.removeprefix(PROBABILITY) for name in names if name.startswith(PROBABILITY))
        self.columns = tuple(dict.fromkeys([*(name for name in TYPES if name not in names), *names]))
        self._types = dict(TYPES)
        for source in reversed(sources):  # of a further column with several types, the first file's counts
            self._types |= {field.name: _plain(field.type) for field in source.schema if field.name not in TYPES}
        self._types |= dict.fromkeys((PROBABILITY + label for label in self.labels), pa.float32())
        counts = self._count()
        inside = {key: rows for key, rows in sorted(counts.items()) if (start or key[0]) <= key[0] <= (end or key[0])}
        self.rows_by_day = {day: rows for (day, of), rows in inside.items() if of == role}
        self.rows_by_role = {known: sum(rows for (_, of), rows in inside.items() if of == known) for _, known in inside}
        self._outside = len(inside) < len(counts)
        if not self.rows_by_day:
            days = sorted(day for day, of in counts if of == role)
            has = f"{days[0]} to {days[-1]}" if days else f"only {', '.join(sorted({of for _, of in counts}))} ones"
            raise UserError(f"{path}: has no {role} decisions{_between(start, end)}; it has {has}")

    @property
    def days(self) -> tuple[date, ...]:
        """Days (UTC) that have rows."""
        return tuple(self.rows_by_day)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.rows_by_day.values())

    def batches(self, columns: Sequence[str], days: Collection[date] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield columns of the rows, at most 65,536 at a time; memory does not grow with the number of rows.

        A log's rows come day by day. Those of a table come in the order of its files, unless ``days`` is one day.

        Args:
            columns: names, in the order of the result; a column that a file lacks is null there.
            days: only rows of these days (default: all).

        Raises:
            UserError: if no file has a column, a column has another type, or a file was removed meanwhile.
        """
        if unknown := [name for name in columns if name not in self._types]:
            raise UserError(f"{self.path}: has no column {', '.join(unknown)}; it has {', '.join(self.columns)}")
        wanted = set(self.days if days is None else days) & set(self.days)
        schema = pa.schema([(name, self._types[name]) for name in columns])
        for source in self.sources:
            if source.day is None or source.day in wanted:
                yield from self._of_source(source, schema, wanted)

    def table(self, columns: Sequence[str], days: Collection[date] | None = None) -> pa.Table:
        """Return columns of the rows as one table; arguments and errors as for :meth:`batches`."""
        batches = list(self.batches(columns, days))
        return pa.Table.from_batches(batches, pa.schema([(name, self._types[name]) for name in columns]))

    def _of_source(self, source: Source, schema: pa.Schema, wanted: Collection[date]) -> Iterator[pa.RecordBatch]:
        names = source.schema.names
        read = dict.fromkeys([*schema.names, *_chosen_by(source)])
        if "labels" in read and "labels" not in names:
            read |= dict.fromkeys(name for name in names if name.startswith(DECISION))
        if self._exposures is not None or not set(read) & set(names):
            read["id"] = None
        whole = not self._outside and len(wanted) == len(self.days)
        for batch in source.batches([*read]):
            kept = self._of_role(source, batch)
            if "time" in _chosen_by(source) and not whole:
                kept = kept.filter(pc.is_in(_days(source, kept), pa.array(sorted(wanted), pa.date32())))
            if kept.num_rows:
                yield pa.RecordBatch.from_arrays([self._column(source, kept, field) for field in schema], schema=schema)

    def _of_role(self, source: Source, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of the role."""
        if "role" not in source.schema.names:
            return batch if self.role == LIVE else batch.slice(0, 0)
        return batch.filter(pc.equal(_roles(source, batch), self.role))

    def _column(self, source: Source, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        name, rows = field.name, batch.num_rows
        if name == EXPOSURE and self._exposures is not None:
            return self._exposures.of(_cast(source, batch["id"], pa.string(), "id"))
        if name == "time" and source.day is None:
            return _times(source, batch, self.assumed_day)
        if name in batch.schema.names:
            array = _cast(source, batch[name], field.type, name)
            if name.startswith(PROBABILITY) and source.day is None:
                _check_probabilities(source, array, name)
            return array
        if name == "labels":
            return _labels(source, batch)
        if name in _Defaults._fields:
            return pa.repeat(getattr(_Defaults(), name), rows)
        return pa.nulls(rows, field.type)

    def _count(self) -> Counter[tuple[date, str]]:
        """Return the number of rows of each day and role."""
        counts: Counter[tuple[date, str]] = Counter()
        for source in self.sources:
            if not (chosen_by := _chosen_by(source)):
                counts[self._day(source), LIVE] += source.rows
                continue
            for batch in source.batches(chosen_by):
                roles = _roles(source, batch) if "role" in chosen_by else pa.repeat(LIVE, batch.num_rows)
                for entry in pc.value_counts(roles).to_pylist():
                    role = entry["values"]
                    if "time" in chosen_by:
                        days = _days(source, batch).filter(pc.equal(roles, role))
                        counts.update({(e["values"], role): e["counts"] for e in pc.value_counts(days).to_pylist()})
                    else:
                        counts[self._day(source), role] += entry["counts"]
        return counts

    def _day(self, source: Source) -> date:
        """Return the day of all rows of a file."""
        day = source.day or self.assumed_day
        assert day is not None
        return day


def open_traffic(
    path: StrPath,
    start: date | None = None,
    end: date | None = None,
    role: str = LIVE,
    exposure: StrPath | None = None,
) -> Traffic:
    """Open a traffic log, or a table of any model's scores.

    Args:
        path: folder of a log (``day=…``), one Parquet file, or a folder of Parquet files.
        start: first day, UTC (default: the first that there is).
        end: last day, inclusive (default: the last that there is).
        role: ``live`` or ``shadow``.
        exposure: Parquet or CSV file of ``id`` and ``exposure`` that replaces the column.

    Raises:
        UserError: if there is no such log or table, it lacks ``id`` or probabilities, or it has no decisions of the role in the
            period.
    """
    path = Path(path)
    if start is not None and end is not None and end < start:
        raise UserError(f"the period ends on {end}, before it starts on {start}")
    exposures = None if exposure is None else Exposures(exposure)
    if path.is_dir() and days_of(path):
        sources = [source for part in parts_of(path, start, end) if (source := log_source(part)) is not None]
        if not sources:
            days = [day for day, _ in days_of(path)]
            raise UserError(f"{path}: has no decisions{_between(start, end)}; its days are {days[0]} to {days[-1]}")
        assumed = None
    else:
        sources, assumed = _table_sources(path)
    return Traffic(path, sources, role, assumed_day=assumed, exposures=exposures, start=start, end=end)


def decisive(reasons: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the label of the first reason of each row, string; null without a reason.

    Args:
        reasons: the column ``reasons``, list<struct<label, …>>.
    """
    if isinstance(reasons, pa.ChunkedArray):
        reasons = reasons.combine_chunks()
    lengths_N = pc.fill_null(pc.list_value_length(reasons), 0).to_numpy(zero_copy_only=False)
    first_N = reasons.offsets.to_numpy()[:-1]
    chosen = pa.array(np.where(lengths_N > 0, first_N, 0), pa.int64(), mask=lengths_N == 0)
    return pc.struct_field(reasons.values, "label").take(chosen)


def _table_sources(path: Path) -> tuple[list[Source], date | None]:
    """Return the files of a table of scores, and the day of its rows if it has no times."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
        if not files:
            raise UserError(f"{path}: is neither a traffic log (day=YYYY-MM-DD/part-*.parquet) nor a folder of Parquet files")
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"{path}: does not exist; name a traffic log, a Parquet file or a folder of them")
    sources = [table_source(file) for file in files]
    for source in sources:
        if "id" not in source.schema.names:
            raise UserError(f"{source.file}: has no column id; a table of scores has id and probability.LABEL")
        if not any(name.startswith(PROBABILITY) for name in source.schema.names):
            raise UserError(f"{source.file}: has no column probability.LABEL; name the columns of calibrated probabilities so")
    timed = ["time" in source.schema.names for source in sources]
    if any(timed) != all(timed):
        missing = sources[timed.index(False)].file
        raise UserError(f"{missing}: has no column time, which other files of {path} have")
    assumed = None if all(timed) else datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC).date()
    return sources, assumed


def _chosen_by(source: Source) -> list[str]:
    """Return the file's columns by which rows are chosen."""
    return [name for name in ("role", *(("time",) if source.day is None else ())) if name in source.schema.names]


def _plain(type_: pa.DataType) -> pa.DataType:
    """Return the type of a dictionary's values, and of large strings the usual one."""
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    return pa.string() if pa.types.is_large_string(type_) or pa.types.is_string_view(type_) else type_


def _cast(source: Source, array: pa.Array, type_: pa.DataType, name: str) -> pa.Array:
    if array.type == type_:
        return array
    try:
        return array.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source.file}: column {name} is {array.type}, not {type_}: {reason}") from None


def _times(source: Source, batch: pa.RecordBatch, assumed: date | None) -> pa.Array:
    """Return the times of a table's rows; times without a zone are UTC."""
    if assumed is not None:
        midnight = datetime(assumed.year, assumed.month, assumed.day, tzinfo=UTC)
        return pa.repeat(pa.scalar(midnight, TIME), batch.num_rows)
    times = batch["time"]
    if pa.types.is_string(times.type) or pa.types.is_large_string(times.type):
        times = _cast(source, times, TIME, "time")
    elif not (pa.types.is_timestamp(times.type) or pa.types.is_date(times.type)):
        raise UserError(f"{source.file}: column time is {times.type}; write timestamps, or text such as 2026-11-29T18:30:00Z")
    if pa.types.is_date(times.type) or (pa.types.is_timestamp(times.type) and times.type.tz is None):
        times = _cast(source, times, pa.timestamp("us"), "time")
    times = times.cast(TIME, safe=False)
    if times.null_count:
        raise UserError(f"{source.file}: column time has rows without a value; give every decision its time, or leave it out")
    return times


def _days(source: Source, batch: pa.RecordBatch) -> pa.Array:
    return _times(source, batch, None).cast(pa.timestamp("us")).cast(pa.date32(), safe=False)


def _roles(source: Source, batch: pa.RecordBatch) -> pa.Array:
    """Return the role of each row; ``live`` where it is null."""
    return pc.fill_null(_cast(source, batch["role"], pa.string(), "role"), LIVE)


def _labels(source: Source, batch: pa.RecordBatch) -> pa.Array:
    """Return the decided labels from the columns ``decision.LABEL``; null where those are absent or null."""
    names = [name for name in source.schema.names if name.startswith(DECISION)]
    if not names:
        return pa.nulls(batch.num_rows, TYPES["labels"])
    columns = [_cast(source, batch[name], pa.bool_(), name) for name in names]
    decided_NL = np.stack([pc.fill_null(column, False).to_numpy(zero_copy_only=False) for column in columns], axis=1)
    known_N = np.stack([column.is_valid().to_numpy(zero_copy_only=False) for column in columns], axis=1).any(axis=1)
    labels = pa.array([name.removeprefix(DECISION) for name in names]).take(pa.array(np.nonzero(decided_NL)[1]))
    offsets = np.concatenate([[0], np.cumsum(decided_NL.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), labels, mask=pa.array(~known_N))


def _check_probabilities(source: Source, array: pa.Array, name: str) -> None:
    bounds = pc.min_max(array).as_py()
    low, high = bounds["min"], bounds["max"]
    if low is not None and not (low >= 0 and high <= 1):
        raise UserError(f"{source.file}: column {name} has {low if low < 0 else high:g}; probabilities are from 0 to 1")


def _between(start: date | None, end: date | None) -> str:
    return "".join([f" from {start}" if start else "", f" to {end}" if end else ""])
