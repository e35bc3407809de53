"""Join of datasets into a new one: rows with the same content or id become one, partial labels stay partial.

Rows are written in the order of the datasets. What is in memory at once are ids, digests and splits of all rows, and one batch.

Example:
    >>> joined = join(["datasets/davidson", "datasets/edos"], "datasets/text", on_conflict="mean")
    >>> joined.rows, joined.merged, joined.conflicts
    (44_120, 12, {'hate': 3})
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, exists
from vigil_data.dataset.history import Change
from vigil_data.dataset.ingest import joined_schema
from vigil_data.dataset.leaks import Leaks, ranked_splits
from vigil_data.dataset.revision import append_rows
from vigil_data.dataset.table_schema import INTERNAL, PROVENANCE, PROVENANCE_TYPE, TARGET
from vigil_data.dataset.writer_lock import writing
from vigil_data.errors import UserError, capped, one_line
from vigil_data.filesystem import StrPath, write_failure

Same = Literal["content", "id", "none"]
"""Rows that become one: those with equal content, those with the same id, or none."""

OnConflict = Literal["fail", "first", "latest", "mean", "unknown"]
"""Target of a label that rows which become one know with different values."""

OnId = Literal["prefix", "fail"]
"""What to do with an id of different rows: put the dataset's name before the later ones, or write nothing."""

MAX_LISTED = 1000
"""Conflicts that are kept to be listed; the others are counted."""

_BATCH_ROWS, _MEDIA_BATCH_ROWS = 4096, 64


class Claim(NamedTuple):
    """A known target of a row.

    Attributes:
        dataset: name of the row's dataset.
        id: the row's id in it.
        value: the target.
    """

    dataset: str
    id: str
    value: float


class Conflict(NamedTuple):
    """A label that rows which become one know with different values.

    Attributes:
        id: the row's id in the join.
        label: the label.
        claims: the known targets, in the order of the datasets.
        target: the target in the join; ``None`` if unknown.
    """

    id: str
    label: str
    claims: tuple[Claim, ...]
    target: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Result of :func:`join`.

    Attributes:
        version: version of the new dataset.
        rows: number of its rows.
        sources: name of each joined dataset to the number of its rows.
        merged: number of rows that became part of an earlier one.
        renamed: name of a dataset to the number of its ids that got its name as a prefix.
        conflicts: label to the number of its conflicts.
        listed: the first :data:`MAX_LISTED` conflicts.
        splits: number of rows whose parts were in different splits; each is in the first of test, validation, others, train.
        leaks: content of the new dataset that is in more than one split.
    """

    version: int
    rows: int
    sources: Mapping[str, int]
    merged: int
    renamed: Mapping[str, int]
    conflicts: Mapping[str, int]
    listed: Sequence[Conflict]
    splits: int
    leaks: Leaks


def join(
    paths: Sequence[StrPath],
    to: StrPath,
    *,
    same: Same = "content",
    on_conflict: OnConflict = "fail",
    on_id: OnId = "prefix",
    reason: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Joined:
    """Join datasets into a new one.

    Rows that become one have the media, roles and times of the first; of other columns, the first value that is known; of
    labels, every known target. A row without a ``source`` gets the name of its dataset, which is the name of its folder. A target
    from another row than the first has its provenance.

    Args:
        paths: the datasets; the order decides what is first.
        to: folder of the new dataset.
        same: rows that become one, also within a dataset.
        on_conflict: the target where they differ: fail, the first one, the one given last (by its provenance, else by the time of
            its dataset's newest version), the mean, or unknown.
        on_id: what to do with an id of different rows.
        reason: why, for the history.
        progress: called with the number of rows written, and of all.

    Raises:
        UserError: if ``to`` is a dataset, a path is none, columns have different types, and for conflicts and ids that fail;
            nothing is written then.
    """
    folder = Path(to)
    if exists(folder):
        raise UserError(f"dataset {folder} exists already; name a new folder")
    sources = _open(paths)
    schema = joined_schema(None, [source.schema for source in sources])
    plan = _Plan(sources, same, on_id)
    if len(plan.member_M):
        labels = [name.removeprefix(TARGET) for name in schema.names if name.startswith(TARGET)]
        added = [PROVENANCE + label for label in labels if PROVENANCE + label not in schema.names]
        schema = pa.schema([*schema, *(pa.field(name, PROVENANCE_TYPE) for name in added)])
    merger = _Merger(sources, plan, schema, on_conflict)
    conflicts, listed = merger.find_conflicts()
    if on_conflict == "fail" and listed:
        hint = "nothing was written; choose a target with --on-conflict first, latest, mean or unknown"
        raise UserError(*capped([conflict_line(conflict) for conflict in listed]), hint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(folder, error) from None
    change = Change("join", reason).with_counts(added=plan.rows, merged=plan.merged, conflicts=sum(conflicts.values()))
    with writing(folder):
        batches = _batches(sources, plan, merger, progress)
        version = append_rows(
            folder,
            None,
            pa.RecordBatchReader.from_batches(schema, batches),
            change,
            inputs=[source.dataset.node.as_input("joined") for source in sources],
            facts={"same": same, "on_id": on_id, "sources": [source.name for source in sources]},
        )
    leaks = Dataset(folder, version).leaks()
    rows = {source.name: source.rows for source in sources}
    return Joined(version, plan.rows, rows, plan.merged, plan.renamed, conflicts, listed, plan.splits, leaks)


def joined_ids(
    datasets: Sequence[Dataset], names: Sequence[str], *, same: Same = "content", on_id: OnId = "prefix"
) -> list[tuple[pa.Array, pa.Array]]:
    """Return the ids of each of some datasets, and the ids that these rows have in a join of them; the join is not made.

    Args:
        datasets: the datasets, in the versions and in the order that were joined.
        names: the names that they had in the join.
        same: as for :func:`join`.
        on_id: as for :func:`join`.
    """
    sources: list[_Source] = []
    for dataset, name in zip(datasets, names, strict=True):
        start = sources[-1].start + sources[-1].rows if sources else 0
        sources.append(_Source(dataset, name, start, len(dataset), datetime.now(UTC)))
    plan = _Plan(sources, same, on_id)
    joined = plan.ids.take(pa.array(plan.leader_N))
    return [(source.dataset.table(["id"])["id"].combine_chunks(), joined.slice(source.start, source.rows)) for source in sources]


def conflict_line(conflict: Conflict) -> str:
    """Return a conflict as one line of text."""
    claims = ", ".join(f"{claim.value:g} in {claim.dataset} ({claim.id})" for claim in conflict.claims)
    return one_line(f"{conflict.id}: {conflict.label} is {claims}")


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """A dataset that is joined; ``start`` is the number of its first row among the rows of all."""

    dataset: Dataset
    name: str
    start: int
    rows: int
    written: datetime

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.schema


def _open(paths: Sequence[StrPath]) -> list[_Source]:
    sources: list[_Source] = []
    names: Counter[str] = Counter()
    start = 0
    for path in paths:
        dataset = Dataset(path)
        name = dataset.path.resolve().name
        names[name] += 1
        name = name if names[name] == 1 else f"{name}-{names[name]}"
        sources.append(_Source(dataset, name, start, len(dataset), history.read(path)[-1].when))
        start += len(dataset)
    return sources


class _Plan:
    """Which rows become one, and the ids and splits of the rows of the join. Rows are numbered through all datasets.

    Attributes:
        leader_N: for each row the first one of those that become one with it.
        ids: for each row its id in the join.
        member_M: rows of groups of more than one, by group and in order.
        leader_M: their leaders.
        split_M: the split of their group.
    """

    def __init__(self, sources: Sequence[_Source], same: Same, on_id: OnId) -> None:
        tables = [source.dataset.table(["id", "digests", "split"]) for source in sources]
        table = pa.concat_tables(tables)
        total = table.num_rows
        number_N = np.arange(total)
        key_N: NDArray[Any] = number_N
        id_N = table["id"].combine_chunks().dictionary_encode().indices.to_numpy()
        if same == "id":
            key_N = id_N
        elif same == "content":
            # Rows without content have no digest: each keeps a key of its own.
            digests = table["digests"].combine_chunks()
            has_N = pc.fill_null(pc.greater(pc.list_value_length(digests), 0), False).to_numpy(zero_copy_only=False)
            digest_H = pc.list_element(digests.filter(pa.array(has_N)), 0).to_numpy()
            _, key_H = np.unique(digest_H, return_inverse=True)
            key_N = total + number_N
            key_N[has_N] = key_H
        _, first_G, group_N, size_G = np.unique(key_N, return_index=True, return_inverse=True, return_counts=True)
        self.leader_N: NDArray[np.int64] = first_G[group_N]
        self.rows, self.merged = len(first_G), total - len(first_G)
        grouped = np.flatnonzero(size_G[group_N] > 1)
        self.member_M = grouped[np.lexsort((grouped, self.leader_N[grouped]))]
        self.leader_M = self.leader_N[self.member_M]
        self._choose_splits(table)
        self.ids, self.renamed = self._unique_ids(sources, table["id"].combine_chunks(), id_N, on_id)

    def starts(self) -> NDArray[np.int64]:
        """Return where each group starts among its members."""
        return np.flatnonzero(np.diff(self.leader_M, prepend=-1))

    def _choose_splits(self, table: pa.Table) -> None:
        names, rank_N = ranked_splits(table)
        rank_M = np.where(rank_N[self.member_M] < 0, len(names), rank_N[self.member_M])
        starts = self.starts()
        best_G = np.minimum.reduceat(rank_M, starts) if len(starts) else rank_M
        worst_G = np.maximum.reduceat(np.where(rank_M == len(names), -1, rank_M), starts) if len(starts) else rank_M
        self.splits = int((worst_G > best_G).sum())
        best_M = np.repeat(best_G, np.diff(starts, append=len(rank_M)))
        self.split_M: list[str | None] = [([*names, None])[rank] for rank in best_M]

    def _unique_ids(
        self, sources: Sequence[_Source], ids: pa.Array, id_N: NDArray[Any], on_id: OnId
    ) -> tuple[pa.Array, dict[str, int]]:
        """Return the ids with the dataset's name before those that an earlier row of the join has."""
        leaders = np.flatnonzero(self.leader_N == np.arange(len(ids)))
        _, first = np.unique(id_N[leaders], return_index=True)
        later = np.delete(leaders, first)
        if not len(later):
            return ids, {}
        starts = [source.start for source in sources]
        named = [(sources[int(np.searchsorted(starts, row, "right")) - 1].name, ids[row].as_py()) for row in later]
        if on_id == "fail":
            lines = [one_line(f"{name}: the id {id_} is taken by another row") for name, id_ in named]
            raise UserError(*capped(lines), "nothing was written; use --on-id prefix")
        new = pa.array([f"{name}:{id_}" for name, id_ in named], pa.string())
        index_N = np.arange(len(ids))
        index_N[later] = len(ids) + np.arange(len(later))
        ids = pa.concat_arrays([ids, new]).take(pa.array(index_N))
        if pc.count_distinct(ids.take(pa.array(leaders))).as_py() < len(leaders):
            raise UserError("an id is taken even with the dataset's name before it; rename the folder of a dataset")
        return ids, dict(Counter(name for name, _ in named))


class _Merger:
    """Values of the columns of rows that become one; media are those of the first row."""

    def __init__(self, sources: Sequence[_Source], plan: _Plan, schema: pa.Schema, on_conflict: OnConflict) -> None:
        self._sources = sources
        self._plan = plan
        self._on_conflict = on_conflict
        self.schema = schema
        self.names = [name for name in schema.names if name not in INTERNAL]
        self._labels = [name.removeprefix(TARGET) for name in self.names if name.startswith(TARGET)]

    def find_conflicts(self) -> tuple[dict[str, int], list[Conflict]]:
        """Return label to the number of conflicts, and the first of them."""
        counts: Counter[str] = Counter()
        listed: list[Conflict] = []
        starts = self._plan.starts()
        for start in range(0, len(starts), _BATCH_ROWS):
            end = starts[start + _BATCH_ROWS] if start + _BATCH_ROWS < len(starts) else len(self._plan.member_M)
            _, _, conflicts = self._merged(slice(starts[start], end))
            counts.update(conflict.label for conflict in conflicts)
            listed += conflicts[: MAX_LISTED - len(listed)]
        return dict(counts), listed

    def merged(self, start: int, end: int) -> tuple[NDArray[np.int64], dict[str, pa.Array]]:
        """Return the leaders from ``start`` to ``end`` that others join, and the values of their columns."""
        at = np.searchsorted(self._plan.leader_M, [start, end])
        leaders, values, _ = self._merged(slice(*at))
        return leaders, {name: pa.array(of, self.schema.field(name).type) for name, of in values.items()}

    def _merged(self, members: slice) -> tuple[NDArray[np.int64], dict[str, list[Any]], list[Conflict]]:
        member_M, leader_M = self._plan.member_M[members], self._plan.leader_M[members]
        source_M, rows_by_name = self._read(member_M)
        leaders, first_G = np.unique(leader_M, return_index=True)
        values: dict[str, list[Any]] = {name: [] for name in self.names}
        conflicts: list[Conflict] = []
        for group in np.split(np.arange(len(member_M)), first_G[1:]) if len(member_M) else ():
            id_ = self._plan.ids[int(leader_M[group[0]])].as_py()
            for name in self.names:
                if name == "split":
                    values[name].append(self._plan.split_M[members.start + int(group[0])])
                elif not name.startswith((TARGET, PROVENANCE)):
                    values[name].append(next((v for at in group if (v := rows_by_name[name][at]) is not None), None))
            for label in self._labels:
                target, given, conflict = self._target(label, id_, group, source_M, rows_by_name)
                values[TARGET + label].append(target)
                values[PROVENANCE + label].append(given)
                conflicts += [conflict] if conflict else []
        return leaders, values, conflicts

    def _read(self, member_M: NDArray[np.int64]) -> tuple[list[_Source], dict[str, list[Any]]]:
        """Return the dataset of each row and the values of the columns, and ``id``, in the order of the rows."""
        names = ["id", *self.names]
        columns: dict[str, list[Any]] = {name: [None] * len(member_M) for name in names}
        source_M: list[_Source] = [self._sources[0]] * len(member_M)
        for source in self._sources:
            places = np.flatnonzero((member_M >= source.start) & (member_M < source.start + source.rows))
            if not len(places):
                continue
            present = [name for name in names if name in source.schema.names]
            table = source.dataset.table(present, member_M[places] - source.start)
            for name in present:
                for place, value in zip(places, table[name].to_pylist(), strict=True):
                    columns[name][place] = value
            for place in places:
                source_M[place] = source
                columns["source"][place] = columns["source"][place] or source.name
        return source_M, columns

    def _target(
        self, label: str, id_: str, group: NDArray[np.int64], source_M: Sequence[_Source], rows: Mapping[str, Sequence[Any]]
    ) -> tuple[float | None, Any, Conflict | None]:
        """Return the target of a label, its provenance if it is not that of the first row, and the conflict."""
        known = [at for at in group if rows[TARGET + label][at] is not None]
        given = {at: rows[PROVENANCE + label][at] for at in known}
        given |= {
            at: {"source": rows["source"][at], "at": source_M[at].written, "policy": None}
            for at in known
            if given[at] is None and at != group[0]
        }
        values = [rows[TARGET + label][at] for at in known]
        if len(set(values)) <= 1:
            return (values[0], given[known[0]], None) if known else (None, None, None)
        if self._on_conflict == "mean":
            target: float | None = float(np.float32(np.mean(values)))
            sources = dict.fromkeys((given[at] or {"source": rows["source"][at]})["source"] for at in known)
            of: Any = {"source": f"mean of {', '.join(sources)}", "at": max(self._time(given[at], source_M[at]) for at in known)}
        elif self._on_conflict == "latest":
            last = max(known, key=lambda at: (self._time(given[at], source_M[at]), at))
            target, of = rows[TARGET + label][last], given[last]
        elif self._on_conflict == "first":
            target, of = values[0], given[known[0]]
        else:
            target = of = None
        claims = tuple(Claim(source_M[at].name, rows["id"][at], rows[TARGET + label][at]) for at in known)
        return target, of, Conflict(id_, label, claims, target)

    @staticmethod
    def _time(given: Mapping[str, Any] | None, source: _Source) -> datetime:
        time: datetime = (given and given["at"]) or source.written
        return time


def _batches(
    sources: Sequence[_Source], plan: _Plan, merger: _Merger, progress: Callable[[int, int], None] | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the join, dataset after dataset."""
    schema, written = merger.schema, 0
    for source in sources:
        sizes = source.dataset.table(["images", "seconds"])
        media = any(pc.max(sizes[name]).as_py() for name in sizes.column_names)
        scanner = lance.dataset(str(source.dataset.path / "items.lance"), version=source.dataset.version).scanner(
            batch_size=_MEDIA_BATCH_ROWS if media else _BATCH_ROWS, scan_in_order=True, batch_readahead=2, fragment_readahead=1
        )
        start = source.start
        for batch in scanner.to_batches():
            rows = np.arange(start, start + batch.num_rows)
            start += batch.num_rows
            leads = plan.leader_N[rows] == rows
            columns = {name: batch[name] for name in batch.schema.names}
            columns["id"] = plan.ids.slice(int(rows[0]), len(rows)) if len(rows) else columns["id"]
            columns["source"] = pc.fill_null(columns["source"], source.name)
            leaders, merged = merger.merged(int(start - batch.num_rows), start)
            index_N = np.arange(batch.num_rows)
            index_N[leaders - (start - batch.num_rows)] = batch.num_rows + np.arange(len(leaders))
            arrays = []
            for field in schema:
                column = columns[field.name] if field.name in columns else pa.nulls(batch.num_rows, field.type)
                column = column.cast(field.type)
                if len(leaders) and field.name in merged:
                    column = pa.concat_arrays([column, merged[field.name]]).take(pa.array(index_N))
                arrays.append(column.filter(pa.array(leads)))
            out = pa.RecordBatch.from_arrays(arrays, schema=schema)
            written += out.num_rows
            if progress is not None:
                progress(written, plan.rows)
            if out.num_rows:
                yield out
