"""Enrichment of a dataset: an engine reads its items, and what it finds becomes one new version.

Findings are kept in a folder of the dataset until they are committed, so that a run that was killed goes on where it was. Nothing
that a person entered is changed: an item that has texts of the role, or a language, is not given to the engine.

Example:
    >>> enrich("datasets/posts", RapidOcr())
    Enriched(version=2, read=120, found=45, given=3, failed={})
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.history import Change
from vigil_data.dataset.leaks import context_media
from vigil_data.dataset.revision import write_columns
from vigil_data.dataset.table_schema import SEGMENTS
from vigil_data.dataset.writer_lock import writing
from vigil_data.enrichment.engines import Engine, EngineError, Finding, Kind
from vigil_data.enrichment.language import UNDETERMINED
from vigil_data.enrichment.text_columns import SCHEMA, with_texts
from vigil_data.errors import Failure, MediaError, one_line
from vigil_data.filesystem import StrPath, replaced_file
from vigil_data.items import MODALITIES
from vigil_data.parallel.ordered_map import ordered_map
from vigil_data.parallel.ray_cluster import RayCluster

FOLDER = ".enriching-"
"""How the names of folders begin that hold findings which are not committed yet."""

SAVE_SECONDS, SAVE_ROWS = 10.0, 1024
"""Findings are saved after this time and number of items; a kill loses no more than these."""

_SIZES = {"text": "characters", "image": "images", "audio": "seconds"}
_ROWS_READ = {"text": 1024, "image": 16, "audio": 1}
_BATCH_ROWS = 4096
_FINDINGS = pa.schema(
    [
        ("id", pa.string()),
        ("content", pa.uint64()),
        ("texts", pa.list_(pa.string())),
        ("starts", pa.list_(pa.float64())),
        ("ends", pa.list_(pa.float64())),
        ("language", pa.string()),
        ("language_confidence", pa.float64()),
    ]
)

_Read = tuple[int, str, Finding | MediaError | EngineError]
"""A row, its id, and what the engine found in it or why it could not be read."""


@dataclass(frozen=True, slots=True)
class Enriched:
    """Result of :func:`enrich`.

    Attributes:
        version: the dataset's newest version.
        read: number of items that the engine has read, in this run and in those that it resumes.
        found: number of those with a text, or whose language was determined.
        given: number of items that are left as they are, as they have texts of this role, or a language, from elsewhere.
        failed: id to the reason of each item that could not be read; they are read again next time.
    """

    version: int
    read: int = 0
    found: int = 0
    given: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)


def engine_column(kind: Kind) -> str:
    """Return the column with the identity of the engine that has read an item; null for items that none has read."""
    return f"{kind}_engine"


def enrich(
    path: StrPath,
    engine: Engine,
    *,
    where: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    change: Change | None = None,
    cluster: RayCluster | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Enriched:
    """Let an engine read the items that none has read yet, and store what it finds as one version.

    Args:
        path: the dataset's folder.
        engine: the engine.
        where: SQL condition that selects items; see :meth:`.Dataset.rows`.
        force: also read items that an engine of this name has read, in place of what that found.
        keep_going: skip items that the engine fails on (default: stop; a later run goes on there).
        change: what the new version is (default: the kind and the engine).
        cluster: where items are read (default: in this process); the engine is pickled to each worker.
        progress: called with the number of items that are read and of those that are to be.

    Raises:
        UserError: if there is no dataset, ``where`` is invalid, or another process writes the dataset.
        Failure: if the engine fails on an item.
    """
    with writing(path):
        dataset = Dataset(path)
        rows, given = _rows_to_read(dataset, engine, where, force=force)
        content_N = _contents(dataset)
        work = _Findings(Path(path), engine)
        done = work.contents()
        ids = dataset.table(["id"], rows)["id"].to_pylist() if done else []
        left = [row for row, id_ in zip(rows.tolist(), ids, strict=True) if done.get(id_) != content_N[row]] if done else rows
        failed: dict[str, str] = {}
        finished = len(rows) - len(left)
        for row, id_, finding in _read(dataset, engine, np.asarray(left, np.int64), cluster):
            if isinstance(finding, Finding):
                work.add(id_, int(content_N[row]), finding)
            else:
                failed[id_] = str(finding)
                if isinstance(finding, EngineError) and not keep_going:
                    work.save()
                    hint = "finished items are kept: run it again, or skip such items with --keep-going"
                    raise Failure(one_line(f"item {id_}: {finding}; {hint}"))
            finished += 1
            if progress is not None:
                progress(finished, len(rows))
        work.save()
        result = Enriched(dataset.version, given=given, failed=failed)
        return _commit(dataset, engine, work, result, rows, force=force, change=change)


def _rows_to_read(dataset: Dataset, engine: Engine, where: str | None, *, force: bool) -> tuple[NDArray[np.int64], int]:
    """Return the rows that the engine reads, and the number of those that it could read, but are given from elsewhere."""
    marker = engine_column(engine.kind)
    is_language = engine.kind == "language"
    wanted = [_SIZES[engine.modality], marker, "language" if is_language else "text_roles"]
    table = dataset.table([name for name in wanted if name in dataset.schema.names])
    absent = pa.chunked_array([pa.nulls(len(dataset), pa.string())])
    readable_N = np.asarray(table[wanted[0]].to_numpy() > 0)
    engine_N = table[marker] if marker in table.column_names else absent
    unread_N = np.asarray(engine_N.is_null())
    if is_language:
        filled_N = np.asarray(pc.is_valid(table["language"]))
    elif "text_roles" in table.column_names:
        roles = table["text_roles"].combine_chunks()
        filled_N = np.zeros(len(dataset), np.bool_)
        filled_N[pc.list_parent_indices(roles).to_numpy()[np.asarray(pc.equal(pc.list_flatten(roles), engine.kind))]] = True
    else:
        filled_N = np.zeros(len(dataset), np.bool_)
    selected_N = np.zeros(len(dataset), np.bool_)
    selected_N[dataset.rows(where=where)] = True
    read_N = readable_N & unread_N & ~filled_N
    if force:
        read_N |= readable_N & np.asarray(pc.fill_null(pc.starts_with(engine_N, f"{engine.name} "), fill_value=False))
    return np.flatnonzero(read_N & selected_N), int((readable_N & unread_N & filled_N & selected_N).sum())


def _contents(dataset: Dataset) -> NDArray[np.uint64]:
    """Return the digest of each item's content, its first one."""
    digests = dataset.table(["digests"])["digests"]
    first = pc.list_element(pc.if_else(pc.greater(pc.list_value_length(digests), 0), digests, pa.scalar([0], digests.type)), 0)
    return np.asarray(first.fill_null(0).to_numpy(), np.uint64)


def _read(dataset: Dataset, engine: Engine, rows: NDArray[np.int64], cluster: RayCluster | None) -> Iterator[_Read]:
    step = _ROWS_READ[engine.modality]
    blocks = (rows[start : start + step] for start in range(0, len(rows), step))
    find = partial(_find, dataset, engine)
    if cluster is None:
        return chain.from_iterable(map(find, blocks))  # item by item: a run that is stopped loses one
    return chain.from_iterable(ordered_map(partial(_listed, find), blocks, cluster=cluster))


def _find(dataset: Dataset, engine: Engine, rows: NDArray[np.int64]) -> Iterator[_Read]:
    for row, item in zip(rows.tolist(), dataset.take(rows, [engine.modality]), strict=True):
        try:
            yield row, item.id, engine(item)
        except (MediaError, EngineError) as error:
            yield row, item.id, error


def _listed(find: Callable[[NDArray[np.int64]], Iterator[_Read]], rows: NDArray[np.int64]) -> list[_Read]:
    return list(find(rows))


class _Findings:
    """Findings on disk that are not committed yet, in files of a folder of the dataset."""

    def __init__(self, dataset: Path, engine: Engine) -> None:
        self.folder = dataset / f"{FOLDER}{engine.kind}-{sha256(engine.identity.encode()).hexdigest()[:16]}"
        # Findings of an engine that is no longer used, and the sound that a killed program was given.
        for other in (*dataset.glob(f"{FOLDER}{engine.kind}-*"), *dataset.glob(f"{FOLDER}audio-*")):
            if other != self.folder:
                shutil.rmtree(other)
        self.folder.mkdir(exist_ok=True)
        self._files = sorted(self.folder.glob("*.arrow"))
        self._rows: list[dict[str, Any]] = []
        self._saved = time.monotonic()

    def add(self, id_: str, content: int, finding: Finding) -> None:
        """Add what was found in an item with this content."""
        self._rows.append(
            {
                "id": id_,
                "content": content,
                "texts": list(finding.texts),
                "starts": [time[0] for time in finding.times],
                "ends": [time[1] for time in finding.times],
                "language": finding.language,
                "language_confidence": finding.confidence,
            }
        )
        if len(self._rows) >= SAVE_ROWS or time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what was added since the last time."""
        if self._rows:
            self._files.append(self.folder / f"{len(self._files):08}.arrow")
            with replaced_file(self._files[-1]) as temporary, pa.ipc.new_file(str(temporary), _FINDINGS) as writer:
                writer.write_table(pa.Table.from_pylist(self._rows, _FINDINGS))
        self._rows, self._saved = [], time.monotonic()

    def table(self) -> pa.Table:
        """Return all findings, memory-mapped; of an item that was read twice, the later ones are behind."""
        parts = [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in self._files]
        return pa.concat_tables(parts) if parts else _FINDINGS.empty_table()

    def contents(self) -> dict[str, int]:
        """Return the id of each item that was read to the digest of its content."""
        table = self.table()
        return dict(zip(table["id"].to_pylist(), table["content"].to_pylist(), strict=True))


def _commit(
    dataset: Dataset,
    engine: Engine,
    work: _Findings,
    result: Enriched,
    read: NDArray[np.int64],
    *,
    force: bool,
    change: Change | None,
) -> Enriched:
    """Write the findings in the rows ``read`` as one version, and remove them from the folder.

    Others are left from a run that was killed after its commit, or of content that has changed since.
    """
    findings = work.table()
    row_F = pc.index_in(findings["id"], dataset.table(["id"])["id"]).fill_null(-1).to_numpy().astype(np.int64)
    place_F = np.arange(len(row_F))[::-1]  # the last finding of an item first
    rows, places = np.unique(row_F[::-1], return_index=True)
    places = place_F[places]
    current = np.isin(rows, read) & (findings["content"].to_numpy()[places] == _contents(dataset)[rows])
    rows, places = rows[current], places[current]
    if not len(rows):
        shutil.rmtree(work.folder)
        return result
    file = work.folder / "columns.new"
    found = 0
    writer = None
    with pa.OSFile(str(file), "wb") as sink:
        for start in range(0, len(rows), _BATCH_ROWS):
            part = findings.take(places[start : start + _BATCH_ROWS])
            table = _columns(dataset, engine, rows[start : start + _BATCH_ROWS], part, force=force)
            if engine.kind == "language":
                found += int(pc.sum(pc.not_equal(part["language"], UNDETERMINED)).as_py() or 0)
            else:
                found += int(pc.sum(pc.greater(pc.list_value_length(part["texts"]), 0)).as_py() or 0)
            writer = writer or pa.ipc.new_file(sink, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    with pa.memory_map(str(file)) as mapped:
        columns = pa.ipc.open_file(mapped).read_all()
        # A column that the dataset lacks and no item needs is not added.
        unused = [n for n in SEGMENTS.names if n in columns.column_names and columns[n].null_count == columns.num_rows]
        columns = columns.drop_columns([name for name in unused if name not in dataset.schema.names])
        change = change or Change(f"enrich {engine.kind}")
        change = replace(change, operation=f"{change.operation}: {engine.identity}").with_counts(read=len(rows), found=found)
        version = write_columns(dataset.path, columns, change, base=dataset.version)
    shutil.rmtree(work.folder)
    return replace(result, version=version, read=len(rows), found=found)


def _columns(dataset: Dataset, engine: Engine, rows: NDArray[np.int64], findings: pa.Table, *, force: bool) -> pa.Table:
    """Return id, the columns that the findings change, and the engine, of some rows."""
    marker = engine_column(engine.kind)
    engines = pa.array([engine.identity] * len(rows), pa.string())
    if engine.kind == "language":
        return pa.table({**{name: findings[name] for name in ("id", "language", "language_confidence")}, marker: engines})
    has_marker = force and marker in dataset.schema.names
    names = [name for name in (*SCHEMA.names, *([marker] if has_marker else [])) if name in dataset.schema.names]
    stored = dataset.table(names, rows)
    replaces = pc.is_valid(stored[marker]).to_pylist() if has_marker else [False] * len(rows)
    times = [
        list(zip(starts, ends, strict=True))
        for starts, ends in zip(findings["starts"].to_pylist(), findings["ends"].to_pylist(), strict=True)
    ]
    columns = with_texts(
        stored, findings["texts"].to_pylist(), times, engine.kind, replaces=replaces, context_media=_context_media(dataset, rows)
    )
    return pa.table({"id": findings["id"], **dict(zip(SCHEMA.names, columns, strict=True)), marker: engines})


def _context_media(dataset: Dataset, rows: NDArray[np.int64]) -> dict[int, list[int]]:
    """Return place in ``rows`` to the digests of images and audio files that are context; only such items are read."""
    names = [f"{modality}_roles" for modality in MODALITIES if modality != "text" and f"{modality}_roles" in dataset.schema.names]
    roles = dataset.table(names, rows).to_pylist() if names else []
    places = [place for place, row in enumerate(roles) if any("context" in (row[name] or ()) for name in names)]
    return {place: context_media(dataset.take(rows[place : place + 1])[0]) for place in places}
