"""The dataset: a versioned Lance table of items with random access by row number.

A dataset is a folder with two tables: ``items.lance``, one row per item, and ``quarantine.lance``, one row per item that was
refused because a medium could not be decoded. Random access makes sampling a pure function of seed and step, and a run's lineage
refers to a version.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC
from functools import cached_property
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.dataset.erasure.ledger import FILE as LEDGER
from vigil_data.dataset.erasure.ledger import Ledger
from vigil_data.dataset.history import Change
from vigil_data.dataset.id_set import IdSet
from vigil_data.dataset.ingest import BadRows, Prepared, Screening, admit, prepare_all, tables
from vigil_data.dataset.leaks import COLUMNS as LEAK_COLUMNS
from vigil_data.dataset.leaks import LeakError, Leaks, OnLeak, find_leaks, repeating_rows
from vigil_data.dataset.revision import append_rows
from vigil_data.dataset.spool import Spool
from vigil_data.dataset.table_schema import FACTS, INTERNAL, PROVENANCE, TARGET, sql_literal
from vigil_data.dataset.writer_lock import INCOMING, writing
from vigil_data.errors import UserError, capped
from vigil_data.filesystem import StrPath
from vigil_data.items import MODALITIES, Item, Modality
from vigil_data.lineage.digests import dataset_node
from vigil_data.lineage.events import Node
from vigil_data.loading.arrow_values import values_of
from vigil_data.loading.location import has_version, is_remote, location, refuse_remote
from vigil_data.loading.packing import Refusal
from vigil_data.parallel.ray_cluster import RayCluster
from vigil_data.quality import quarantine
from vigil_data.quality.origin import Places

_MEDIA_COLUMNS = ("", "_roles", "_starts", "_ends")
"""What follows a modality in the names of its columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """Result of :func:`write`.

    Attributes:
        kept: number of items stored.
        quarantined: number of items in quarantine that this import put there.
        version: the dataset's new version.
        skipped: number of items left out because their content is in another split.
        released: number of items that left the quarantine because they are stored now.
        replaced: ids of items with lone surrogates, which UTF-8 cannot store, replaced by U+FFFD.
        leaks: content of the new items that is in more than one split.
        erased: number of items that were refused since they had been erased, by the date of the erasure.
        screened: number of items that the screening changed or refused, by what it came to.
    """

    kept: int
    quarantined: int
    version: int
    skipped: int = 0
    released: int = 0
    replaced: Sequence[str] = ()
    leaks: Leaks = field(default_factory=Leaks)
    erased: Mapping[str, int] = field(default_factory=dict)
    screened: Mapping[str, int] = field(default_factory=dict)


class Dataset:
    """One version of a dataset, read-only.

    It is cheap to open and can be pickled: a worker process opens the same version itself (Lance is not fork-safe, so workers
    start by ``forkserver`` or ``spawn``).

    Args:
        path: the dataset's folder, or its address in an object store, ``s3://bucket/…``.
        version: version of the items table (default: the newest).

    Raises:
        UserError: if there is no dataset or no such version.

    Attributes:
        path: the dataset's folder.
        version: the version that is read, even if a newer one is written later.
    """

    def __init__(self, path: StrPath, version: int | None = None) -> None:
        self.path = Path(path)
        self._name = f"dataset {location(path)}"
        if not exists(path):
            raise UserError(f"{location(path)} is not a dataset (it has no items.lance); create one with `vigil data import`")
        try:
            self._lance = lance.dataset(location(self.path / "items.lance"), version=version)
        except ValueError:
            newest = Dataset(self.path).version
            gone = "; an erasure removed earlier versions" if (self.path / LEDGER).is_file() and (version or 0) < newest else ""
            raise UserError(f"{self._name} has no version {version}; its newest is {newest}{gone}") from None
        self.version: int = self._lance.version

    def __reduce__(self) -> tuple[type["Dataset"], tuple[Path, int]]:
        return Dataset, (self.path if is_remote(self.path) else self.path.absolute(), self.version)

    def __len__(self) -> int:
        return int(self._addresses.size)

    @cached_property
    def node(self) -> Node:
        """The version in the lineage; its digest is the same in a copy of the dataset, and no data are read for it."""
        return dataset_node(location(self.path) if is_remote(self.path) else str(self.path.resolve()), self._lance)

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the version; see :func:`vigil_data.lineage.digest_of_table`."""
        return self.node.digest

    @property
    def schema(self) -> pa.Schema:
        """Schema of the stored table."""
        return self._lance.schema

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that have a column of targets."""
        return tuple(name.removeprefix(TARGET) for name in self.schema.names if name.startswith(TARGET))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns to slice by: all but ids, payloads, targets, their provenance, sizes and digests."""
        return tuple(n for n in self.schema.names if n not in INTERNAL and not n.startswith((TARGET, PROVENANCE)))

    @cached_property
    def _addresses(self) -> NDArray[np.int64]:
        """Address of each row in Lance's files, ascending; it differs from the row number after deletions."""
        return self._addresses_where(None)

    def _addresses_where(self, condition: str | None) -> NDArray[np.int64]:
        table = self._lance.scanner(columns=[], filter=condition, with_row_address=True).to_table()
        addresses: NDArray[np.int64] = np.sort(table["_rowaddr"].to_numpy().astype(np.int64))
        return addresses

    def splits(self) -> dict[str, int]:
        """Return split to number of rows; rows without a split are under the empty name."""
        counts = self.table(["split"]).group_by("split").aggregate([([], "count_all")]).to_pylist()
        return dict(sorted((row["split"] or "", row["count_all"]) for row in counts))

    def rows(self, split: str | None = None, where: str | None = None) -> NDArray[np.int64]:
        """Return the row numbers of a split and condition, int64, ascending.

        Args:
            split: value of the column ``split`` (default: all rows).
            where: SQL condition over the columns, such as ``language = 'en'``; a label's column is written in backquotes,
                ```target:hate` IS NOT NULL``.

        Raises:
            UserError: if no row is in ``split``, or the condition is invalid.
        """
        if split is not None and split not in (splits := self.splits()):
            raise UserError(f"{self._name} has no split {split}; it has {', '.join(filter(None, splits)) or 'none'}")
        conditions = [] if split is None else [f"split = {sql_literal(split)}"]
        conditions += [] if where is None else [f"({where})"]
        if not conditions:
            return np.arange(len(self), dtype=np.int64)
        try:
            matching = self._addresses_where(" AND ".join(conditions))
        except (ValueError, OSError) as error:
            reason = re.sub(r"^Invalid user input: |, /\S+\.rs:\d+:\d+", "", str(error).splitlines()[0])
            hint = "; write a label's column in backquotes: `target:LABEL`" if TARGET in (where or "") else ""
            raise UserError(f"{self._name}: invalid condition {where!r}: {reason}{hint}") from None
        return np.searchsorted(self._addresses, matching).astype(np.int64)

    def take(self, rows: Sequence[int] | NDArray[np.int64], modalities: Sequence[Modality] = MODALITIES) -> list[Item]:
        """Return items by row number, in the given order; null targets and columns are absent.

        Args:
            rows: row numbers.
            modalities: those that are read; items have none of the others.

        Raises:
            IndexError: if a row number is out of range.
        """
        return self.items(self._take(rows, self.item_columns(modalities)))

    def item_columns(
        self,
        modalities: Sequence[Modality] = MODALITIES,
        labels: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> list[str]:
        """Return the stored columns that items are made of by :meth:`items`.

        Args:
            modalities: those that are read.
            labels: labels whose targets are read (default: all).
            columns: other columns that are read (default: all).
        """
        media = [f"{modality}{of}" for modality in modalities for of in _MEDIA_COLUMNS]
        targets = [TARGET + label for label in (self.labels if labels is None else labels)]
        wanted = {"id", *media, *targets, *(self.columns if columns is None else columns)}
        return [name for name in self.schema.names if name in wanted]

    def items(self, table: pa.Table) -> list[Item]:
        """Return the items of a table of stored columns, such as :meth:`item_columns`."""
        values = {name: values_of(table[name]) for name in table.column_names}
        labels = [name.removeprefix(TARGET) for name in table.column_names if name.startswith(TARGET)]
        columns = [name for name in self.columns if name in values]
        absent: list[Any] = [None] * table.num_rows
        payloads = {modality: values.get(modality, absent) for modality in MODALITIES}
        roles = {modality: values.get(f"{modality}_roles", absent) for modality in MODALITIES}
        starts, ends = values.get("text_starts", absent), values.get("text_ends", absent)
        return [
            Item(
                values["id"][row],
                tuple(payloads["text"][row] or ()),
                tuple(payloads["image"][row] or ()),
                tuple(payloads["audio"][row] or ()),
                {label: value for label in labels if (value := values[TARGET + label][row]) is not None},
                {name: value for name in columns if (value := values[name][row]) is not None},
                {modality: tuple(of[row]) for modality, of in roles.items() if of[row] is not None},
                tuple(None if time[0] is None else time for time in zip(starts[row] or (), ends[row] or (), strict=True)),
            )
            for row in range(table.num_rows)
        ]

    def targets(self, labels: Sequence[str], rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return targets ``[n, L]`` in the order of ``labels``, NaN where unknown or where the dataset lacks the label."""
        targets_NL = np.full((len(self) if rows is None else len(rows), len(labels)), np.nan, np.float32)
        if known := [label for label in labels if label in self.labels]:
            table = self.table([TARGET + label for label in known], rows)
            for label in known:
                targets_NL[:, labels.index(label)] = table[TARGET + label].to_numpy()
        return targets_NL

    def facts(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return characters of text, number of images and seconds of audio, float64 ``[n, 3]``."""
        table = self.table(FACTS.names, rows)
        return np.stack([table[name].to_numpy().astype(np.float64) for name in FACTS.names], axis=1)

    def table(self, columns: Sequence[str], rows: Sequence[int] | NDArray[np.int64] | None = None) -> pa.Table:
        """Return stored columns of all rows in order, or of ``rows`` in the given order.

        Raises:
            UserError: if a column does not exist.
        """
        self._require(columns)
        if rows is not None:
            return self._take(rows, list(columns))
        return self._lance.scanner(columns=list(columns), scan_in_order=True).to_table()

    def batches(self, columns: Sequence[str], rows: int = 16_384) -> Iterator[pa.RecordBatch]:
        """Yield stored columns of all rows in order, at most ``rows`` at a time.

        Raises:
            UserError: if a column does not exist.
        """
        self._require(columns)
        yield from self._lance.scanner(columns=list(columns), batch_size=rows, scan_in_order=True).to_batches()

    def _require(self, columns: Sequence[str]) -> None:
        if absent := [name for name in columns if name not in self.schema.names]:
            raise UserError(f"{self._name} has no column {', '.join(absent)}; it has {', '.join(self.schema.names)}")

    def versions(self) -> list[dict[str, Any]]:
        """Return all versions, oldest first, each with ``version``, ``timestamp`` (datetime) and ``rows``."""
        return [
            {"version": v["version"], "timestamp": v["timestamp"], "rows": int(v["metadata"]["total_rows"])}
            for v in self._lance.versions()
        ]

    def written(self) -> dict[int, str]:
        """Return version to the time at which it was written (UTC, ISO 8601), which differs if a dataset is made again."""
        return {v["version"]: v["timestamp"].astimezone(UTC).isoformat() for v in self.versions()}

    def leaks(self) -> Leaks:
        """Return the content that is in more than one split; only rows with content that occurs more than once are in memory."""
        (repeats_N,) = repeating_rows([self.table(["digests"])["digests"]])
        columns = [*LEAK_COLUMNS, *(TARGET + label for label in self.labels)]
        return _of_all_rows(find_leaks(self.table(columns, np.flatnonzero(repeats_N))), repeats_N)

    def quarantine(self) -> pa.Table:
        """Return the quarantined items of all versions; see :data:`vigil_data.dataset.table_schema.QUARANTINE`."""
        return quarantine.read(self.path)

    def _take(self, rows: Sequence[int] | NDArray[np.int64], columns: list[str]) -> pa.Table:
        numbers = np.asarray(rows, dtype=np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"row numbers must be 0 to {len(self) - 1}, not {numbers.min()} to {numbers.max()}")
        return self._lance.take(pa.array(numbers), columns=columns)


def exists(path: StrPath) -> bool:
    """Whether there is a dataset at ``path``."""
    return has_version(Path(path) / "items.lance")


def write(
    path: StrPath,
    items: Iterable[Item | Refusal],
    *,
    append: bool = False,
    on_leak: OnLeak = "warn",
    bad_rows: BadRows = "fail",
    places: Places | None = None,
    change: Change | None = None,
    allow_erased: bool = False,
    screen: Screening | None = None,
    cluster: RayCluster | None = None,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Store items as a new dataset or append them to one; nothing is written if any item is invalid.

    Items are read one at a time and spooled to disk in chunks, so memory is bounded. Undecodable items go to the quarantine table
    with the reason; an item that was in quarantine and is stored now leaves it. New labels and columns are null in older rows.

    Args:
        path: the dataset's folder.
        items: the items, and refusals of items that the caller could not build; row numbers follow this order, after the existing
            rows.
        append: append to an existing dataset (default: refuse one).
        on_leak: what to do if content is in more than one split, of the new items or of the dataset: only report it in the
            result; skip the new items that are in another split than the stored ones, or than the first in the order test,
            validation, others, train; or refuse the import.
        bad_rows: put items with invalid values, and those whose id is taken, into quarantine, or refuse the import.
        places: finds where the items came from, for the quarantine.
        change: operation and reason of the new version (default: ``import``); numbers of rows are added to its counts.
        allow_erased: store items that were erased from the dataset (default: refuse and count those with the id or the content of
            an erased item).
        screen: screens each item, such as :class:`.Screen` (default: none is).
        cluster: where media files are read and items screened (default: in this process).
        progress: called with the number of items read so far.

    Raises:
        UserError: if a dataset exists, if another process writes to it, or for ids that are empty or not unique, targets outside
            [0, 1], invalid names of labels or columns, and columns with values of different types, and for leaks if they are
            refused. Nothing is written then.
    """
    refuse_remote(path)
    folder = Path(path)
    if exists(folder) and not append:
        raise UserError(f"dataset {folder} exists already; append to it, or name another folder")
    problems: list[str] = []
    refused: list[Refusal] = []
    replaced: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"dataset {folder} cannot be created: {error.strerror}") from None
    try:
        with writing(folder), tempfile.TemporaryDirectory(dir=folder, prefix=INCOMING) as incoming:
            old = Dataset(folder) if exists(folder) else None
            stored = IdSet(id_ for batch in old.batches(["id"]) for id_ in batch["id"].to_pylist()) if old else IdSet()
            returning: Counter[str] = Counter()
            screened: Counter[str] = Counter()
            prepared = _counted(prepare_all(items, screen, cluster), screened)
            if not allow_erased:
                prepared = _not_erased(prepared, Ledger(folder), returning)
            kept = admit(prepared, stored, refused, problems, progress, bad_rows=bad_rows)
            spool = Spool(Path(incoming), tables(kept, problems, replaced))
            if problems:
                raise UserError(*capped(list(dict.fromkeys(problems))))
            schema = spool.schema(old.schema if old else None)
            leaks = _find_leaks(old, spool, schema)
            if on_leak == "refuse" and leaks.contents:
                raise LeakError(leaks)
            if on_leak == "skip":
                spool.skip(leaks.skipped_N)
            base = old.version if old is not None else 0
            change = (change or Change("import")).with_counts(added=spool.rows, quarantined=len(refused), skipped=spool.skipped)
            change = change.with_counts(refused_as_erased=returning.total())
            now = quarantine.put(folder, refused, places=places, command=change.command, version=base)
            version = _commit(folder, old, spool, schema, change)
            released = quarantine.release(folder, spool.kept_ids(), now) if spool.rows else 0
            return Written(spool.rows, len(refused), version, spool.skipped, released, replaced, leaks, returning, screened)
    finally:
        with suppress(OSError):  # removes the folder only if it is empty, which it is after an error
            folder.rmdir()


def _counted(prepared: Iterable[Prepared], screened: Counter[str]) -> Iterator[Prepared]:
    for one in prepared:
        if one.screened:
            screened[one.screened] += 1
        yield one


def _not_erased(prepared: Iterable[Prepared], ledger: Ledger, refused: Counter[str]) -> Iterator[Prepared]:
    """Yield the items that were not erased; ``refused`` collects the number of the others, by the date of their erasure."""
    for one in prepared:
        if (when := ledger.erased_on(one.item.id, one.digests[0] if one.digests else None)) is not None:
            refused[when] += 1
        else:
            yield one


def _find_leaks(old: Dataset | None, spool: Spool, schema: pa.Schema) -> Leaks:
    """Compare the content of new and stored rows; only rows with content that occurs more than once are in memory."""
    digests = [spool.read(["digests"], schema)["digests"]]
    if old is not None:
        digests.append(old.table(["digests"])["digests"])
    new_N, *stored_N = repeating_rows(digests)
    stored = None
    if old is not None:
        names = [name for name in old.schema.names if name in LEAK_COLUMNS or name.startswith(TARGET)]
        stored = old.table(names, np.flatnonzero(stored_N[0]))
    return _of_all_rows(find_leaks(spool.read(LEAK_COLUMNS, schema, targets=True, rows_N=new_N), stored), new_N)


def _of_all_rows(leaks: Leaks, compared_N: NDArray[np.bool_]) -> Leaks:
    """Return leaks that were found among some rows as leaks among all of them."""
    skipped_N = np.zeros(len(compared_N), np.bool_)
    skipped_N[compared_N] = leaks.skipped_N
    return replace(leaks, skipped_N=skipped_N)


def _commit(folder: Path, old: Dataset | None, spool: Spool, schema: pa.Schema, change: Change) -> int:
    """Write the new items as one version and return it; refused items are in quarantine already, so that none is lost."""
    if old is not None and not spool.rows:
        return old.version
    reader = pa.RecordBatchReader.from_batches(schema, spool.batches(schema))
    return append_rows(folder, None if old is None else old._lance, reader, change)
