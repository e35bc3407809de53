"""Daily summaries of traffic: counts that are read once, and small enough to keep.

A day of ten million decisions becomes a histogram of probabilities for each label and slice, counts of actions, presence patterns
and other categories, and the mean of some features of the embeddings. It holds no ids. Summaries of complete days of a log are
kept next to it, so that the next look reads only the new days.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import sha256_json, write_json
from vigil_data.json_fields import Count
from vigil_monitoring.drift.embeddings import EMBEDDING, RandomFeatures
from vigil_monitoring.traffic import Traffic
from vigil_serving.traffic.folder import parts_of
from vigil_serving.traffic.schema import PROBABILITY

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FORMAT = 1
"""Version of the summaries on disk."""

ALL = ""
"""Name of the slice of all items."""

UNKNOWN = "unknown"
"""Category of items whose column is null."""

MIX_COLUMNS = ("content_type", "language", "market")
"""Columns whose mix of categories is summarized, if the traffic has them."""

MOST_CATEGORIES = 1000
"""Most categories of a column on one day."""

MOST_SLICES = 200
"""Most categories of a column of slices on one day."""

MOST_EMBEDDINGS = 50_000
"""Embeddings that are read of a day, evenly spread over its rows."""

EDGES = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07),
    *(0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999),
)
"""Edges of the histograms of calibrated probabilities; a probability belongs to the bin above the last edge that it reaches."""


@dataclass(frozen=True, slots=True)
class SummaryPlan:
    """What is summarized.

    Attributes:
        edges: label to the edges of its histogram, ascending.
        by: columns of the slices.
    """

    edges: Mapping[str, tuple[float, ...]]
    by: tuple[str, ...]


@dataclass(slots=True)
class SliceCounts:
    """Counts of one slice.

    Attributes:
        items: number of decisions.
        counts: label to its histogram, ``[B]``; decisions without a probability are in no bin.
        sums: label to the sum of the probabilities in each bin, ``[B]``.
        categories: ``action`` and ``presence`` to the number of decisions of each of its values.
    """

    items: Count = 0
    counts: dict[str, list[Count]] = field(default_factory=dict)
    sums: dict[str, list[float]] = field(default_factory=dict)
    categories: dict[str, dict[str, Count]] = field(default_factory=dict)


@dataclass(slots=True)
class FeatureSums:
    """Sums of the features of embeddings.

    Attributes:
        items: number of embeddings.
        sums: sum of each feature, ``[F]``.
        squares: sum of its squares, ``[F]``.
    """

    items: Count
    sums: list[float]
    squares: list[float]


@dataclass(slots=True)
class DaySummary:
    """Summary of one day.

    Attributes:
        errors: decisions with an error.
        slices: name (``""`` for all items, ``language=de``) to its counts.
        mixes: column to the number of decisions of each category.
        features: sums of the features of embeddings; ``None`` without embeddings.
    """

    errors: Count = 0
    slices: dict[str, SliceCounts] = field(default_factory=lambda: {ALL: SliceCounts()})
    mixes: dict[str, dict[str, Count]] = field(default_factory=dict)
    features: FeatureSums | None = None

    @property
    def items(self) -> int:
        """Number of decisions."""
        return self.slices[ALL].items


def summary_plan(labels: Iterable[str], by: tuple[str, ...], edges: Mapping[str, Iterable[float]] | None = None) -> SummaryPlan:
    """Return the plan for labels, with further edges where the reference has its own."""
    more = edges or {}
    return SummaryPlan({label: tuple(sorted({*EDGES, *map(float, more.get(label, ()))})) for label in labels}, by)


def summarize(
    traffic: Traffic,
    plan: SummaryPlan,
    days: Collection[date],
    *,
    cache: Path | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[date, DaySummary]:
    """Summarize days of traffic in one pass over those that are not cached; memory does not grow with the number of rows.

    Args:
        traffic: the decisions.
        plan: what is summarized.
        days: days to summarize; one without decisions has an empty summary.
        cache: folder of summaries of complete days of a log; ``None`` to read and keep none.
        progress: called with the rows read.

    Raises:
        UserError: if the traffic lacks a column, or a column of ``by`` has too many categories.
    """
    if missing := [name for name in plan.by if name not in traffic.columns]:
        raise UserError(f"{traffic.path}: has no column {', '.join(missing)}; it has {', '.join(traffic.columns)}")
    kept = _Cache(cache, traffic, plan)
    found = {day: DaySummary() for day in days}
    todo = []
    for day in sorted(set(days) & set(traffic.days)):
        summary = kept.read(day)
        if summary is None:
            todo.append(day)
        else:
            found[day] = summary
    rows, total = 0, sum(traffic.rows_by_day[day] for day in todo)
    # A log is read day by day; a table of scores has no order, and is read once for all of its days.
    passes = [[day] for day in todo] if kept.is_log else [todo] if todo else []
    for group in passes:
        summaries = {day: _DayCounter(plan, traffic, traffic.rows_by_day[day]) for day in group}
        columns = next(iter(summaries.values())).columns
        for batch in traffic.batches(columns, group):
            rows += batch.num_rows
            if len(group) == 1:
                summaries[group[0]].add(batch)
            else:
                _add_by_day(batch, summaries)
            if progress is not None:
                progress("reading traffic", rows, total)
        for day, counter in summaries.items():
            found[day] = counter.summary()
            kept.write(day, found[day])
    return found


def _add_by_day(batch: pa.RecordBatch, summaries: "Mapping[date, _DayCounter]") -> None:
    day_N = batch["time"].cast(pa.date32())
    for day in pc.unique(day_N).to_pylist():
        summaries[day].add(batch.filter(pc.equal(day_N, day)))


class _DayCounter:
    """Counts of one day while its rows are read."""

    def __init__(self, plan: SummaryPlan, traffic: Traffic, rows: int) -> None:
        self._plan = plan
        self._edges = {label: np.array(edges, np.float32) for label, edges in plan.edges.items()}
        self._mixes = [name for name in dict.fromkeys((*MIX_COLUMNS, *plan.by)) if name in traffic.columns and name != "presence"]
        embedded = EMBEDDING in traffic.columns
        self.columns = list(dict.fromkeys(["time", "action", "presence", "error", *self._mixes, *plan.by]))
        self.columns += [*(PROBABILITY + label for label in plan.edges), *([EMBEDDING] if embedded else [])]
        self._items: Counter[str] = Counter()
        self._counts: dict[tuple[str, str], Integers] = {}
        self._sums: dict[tuple[str, str], Floats] = {}
        self._categories: dict[tuple[str, str], Counter[str]] = {}
        self._errors, self._rows = 0, 0
        self._every = max(1, -(-rows // MOST_EMBEDDINGS))
        self._features = RandomFeatures() if embedded else None

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the rows of a batch."""
        self._errors += batch.num_rows - batch["error"].null_count
        coded = {name: _coded(batch[name]) for name in dict.fromkeys(("action", "presence", *self._mixes, *self._plan.by))}
        for name, (_, values) in coded.items():
            self._check_categories(name, len(values))
        slices = [(np.zeros(batch.num_rows, np.int64), [ALL])]
        slices += [(coded[name][0], [f"{name}={value}" for value in coded[name][1]]) for name in self._plan.by]
        bins = {label: self._binned(batch[PROBABILITY + label], edges) for label, edges in self._edges.items()}
        for code_N, names in slices:
            self._items.update(dict(zip(names, np.bincount(code_N, minlength=len(names)).tolist(), strict=True)))
            for label, (known_N, bin_N, probability_N) in bins.items():
                width = len(self._edges[label]) + 1
                place_N = (code_N if known_N is None else code_N[known_N]) * width + bin_N
                shape = (len(names), width)
                counts = np.bincount(place_N, minlength=len(names) * width).reshape(shape)
                sums = np.bincount(place_N, probability_N, len(names) * width).reshape(shape)
                for name, count_B, sum_B in zip(names, counts, sums, strict=True):
                    _accumulate(self._counts, (name, label), count_B)
                    _accumulate(self._sums, (name, label), sum_B)
            for column in ("action", "presence"):
                self._count_categories(code_N, names, column, *coded[column])
        for column in self._mixes:
            self._count_categories(np.zeros(batch.num_rows, np.int64), ["mix"], column, *coded[column])
        if self._features is not None:
            # Every k-th row of the day, wherever batches end.
            self._features.add(batch[EMBEDDING].slice(-self._rows % self._every), self._every)
        self._rows += batch.num_rows

    @staticmethod
    def _binned(column: pa.Array, edges: NDArray[np.float32]) -> tuple[NDArray[np.bool_] | None, Integers, NDArray[np.float32]]:
        """Return which rows have a probability (``None``: all), their bins, and the probabilities."""
        read_N = column.to_numpy(zero_copy_only=False)
        known_N = None if not column.null_count and not np.isnan(read_N.sum()) else ~np.isnan(read_N)
        read_K = np.ascontiguousarray(read_N if known_N is None else read_N[known_N], np.float32)
        return known_N, np.searchsorted(edges, read_K, side="right"), read_K

    def _count_categories(self, code_N: Integers, names: list[str], column: str, value_N: Integers, values: list[str]) -> None:
        table = np.bincount(code_N * len(values) + value_N, minlength=len(names) * len(values)).reshape(len(names), len(values))
        for name, row in zip(names, table.tolist(), strict=True):
            counter = self._categories.setdefault((name, column), Counter())
            for value, count in zip(values, row, strict=True):
                if count:
                    counter[value] += count
            self._check_categories(column, len(counter))

    def _check_categories(self, column: str, categories: int) -> None:
        most = MOST_SLICES if column in self._plan.by else MOST_CATEGORIES
        if categories <= most:
            return
        raise UserError(f"column {column} has {categories:,} values on one day, more than {most:,}; slice by columns with few")

    def summary(self) -> DaySummary:
        """Return the counts."""
        slices = {}
        for name, items in self._items.items():
            slices[name] = SliceCounts(
                items,
                {label: self._counts[name, label].tolist() for label in self._edges},
                {label: self._sums[name, label].tolist() for label in self._edges},
                {column: dict(self._categories[name, column]) for column in ("action", "presence")},
            )
        mixes = {column: dict(self._categories["mix", column]) for column in self._mixes}
        features = None
        if self._features is not None and self._features.items:
            features = FeatureSums(self._features.items, self._features.sums.tolist(), self._features.squares.tolist())
        return DaySummary(self._errors, slices, mixes, features)


def _accumulate(totals: dict[tuple[str, str], Any], key: tuple[str, str], values: Any) -> None:
    if key in totals:
        totals[key] += values
    else:
        totals[key] = values.copy()


def _coded(column: pa.Array) -> tuple[Integers, list[str]]:
    """Return the code of each row and the categories; null is one of them."""
    coded = pc.fill_null(pc.cast(column, pa.string()), UNKNOWN).dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()


class _Cache:
    """Summaries of complete days of a log, each with a digest of the plan and of the day's files.

    A day that a server still writes is not kept. Files are known by name, size and time of change: a day whose rows were erased
    is summarized again.
    """

    def __init__(self, folder: Path | None, traffic: Traffic, plan: SummaryPlan) -> None:
        self._folder, self._traffic = folder, traffic
        parts = parts_of(traffic.path) if traffic.path.is_dir() else []
        self.is_log = bool(parts)
        self._files: dict[date, list[tuple[str, int, int]]] = {}
        for part in parts if folder is not None else []:
            status = part.file.stat()
            self._files.setdefault(part.day, []).append((part.file.name, status.st_size, status.st_mtime_ns))
        self._active = {part.day for part in parts if part.active}
        self._head = [FORMAT, traffic.role, asdict(plan), EMBEDDING in traffic.columns]

    def _digest(self, day: date) -> str:
        return sha256_json([*self._head, self._files[day]])

    def _file(self, day: date) -> Path | None:
        if self._folder is None or day not in self._files or day in self._active:
            return None
        place = sha256_json(str(self._traffic.path.resolve()))[:12]
        return self._folder / f"{day}.{self._traffic.role}.{place}.json"

    def read(self, day: date) -> DaySummary | None:
        """Return the summary of a day, if there is one of these files by this plan."""
        if (file := self._file(day)) is None or not file.is_file():
            return None
        try:
            value = json_fields.mapping(json.loads(file.read_text(encoding="utf-8")), str(file), ("digest", "summary"))
            if value["digest"] != self._digest(day):
                return None
            summary: DaySummary = json_fields.structure(DaySummary, value["summary"], str(file))
            return summary
        except (OSError, ValueError, UserError):
            return None  # It is written again.

    def write(self, day: date, summary: DaySummary) -> None:
        """Keep the summary of a complete day; a folder that cannot be written is left alone."""
        if (file := self._file(day)) is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"digest": self._digest(day), "summary": asdict(summary)})
        except OSError:
            return
