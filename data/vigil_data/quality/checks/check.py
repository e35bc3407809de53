"""Check of a manifest or a dataset: everything that an import refuses, every medium decoded completely, labels, and tokens.

Example:
    >>> report = check_dataset(Dataset("datasets/posts"))
    >>> report.findings.errors
    2
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.table_schema import ITEMS, SAMPLING, SEGMENTS, TARGET
from vigil_data.errors import UserError
from vigil_data.importers.manifest import Manifest
from vigil_data.items import Item, Modality
from vigil_data.media_files import UnreadItem, read_item
from vigil_data.parallel.ordered_map import ordered_map
from vigil_data.parallel.ray_cluster import RayCluster
from vigil_data.progress import ProgressCallback
from vigil_data.quality.checks.findings import Findings
from vigil_data.quality.checks.item_checks import ItemChecks
from vigil_data.quality.checks.media_pool import MediaLimits, MediaPool, Verdict, media_of
from vigil_data.quality.checks.unknown_tokens import Share
from vigil_data.quality.origin import ROW, Origin, Place, Refused
from vigil_data.settings import TextSettings

_TEXT_ROWS = 2048
_MEDIA_BYTES = 32_000_000
_MANIFEST_ROWS, _DATASET_ROWS, _DATASET_ROWS_ON_CLUSTER = 64, 1024, 128
"""Items with media of a task."""

_FORMS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpf"), "JPEG2000"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".ogg", ".oga", ".opus"), "Ogg"),
    **dict.fromkeys((".wav", ".wave"), "WAV"),
    **{f".{form.lower()}": form for form in ("PNG", "GIF", "WEBP", "BMP", "AVIF", "FLAC", "MP3")},
}
"""Suffix to the format that it means; other suffixes mean nothing."""


@dataclass(slots=True, eq=False)
class Report:
    """Result of a check.

    Attributes:
        path: what was checked.
        version: version of the dataset; ``None`` for a manifest.
        rows: number of rows.
        media: number of images and audio files that were decoded.
        findings: what was found.
        tokens: unknown tokens of each split, if a recipe's text input was given.
        bad: row number and refusal of each bad item of a dataset, for the quarantine.
    """

    path: str
    version: int | None = None
    rows: int = 0
    media: int = 0
    findings: Findings = field(default_factory=Findings)
    tokens: list[Share] = field(default_factory=list)
    bad: dict[int, Refused] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value."""
        return {
            "path": self.path,
            "version": self.version,
            "rows": self.rows,
            "media": self.media,
            "errors": self.findings.errors,
            "warnings": self.findings.warnings,
            "findings": [finding.to_json() for finding in self.findings],
            "unknown_tokens": [share.to_json() for share in self.tokens],
        }


class _Medium(NamedTuple):
    """One medium: the line or row number of its item, its modality, its place among those, and the name of its file."""

    at: Any
    modality: Modality
    number: int
    name: str | None = None


_Load = Callable[[Any], Iterator[tuple[_Medium, Modality, bytes]]]
"""Reads the media of a task, one at a time."""


class _Verification:
    """Function of a task on a cluster: its media are decoded by one process, which may crash, of each worker.

    Args:
        load: reads the media.
        limits: limits of each medium.
    """

    def __init__(self, load: _Load, limits: MediaLimits | None) -> None:
        self._load, self._limits = load, limits
        self._pool: MediaPool | None = None  # ends with the worker

    def __call__(self, task: Any) -> list[tuple[_Medium, Verdict]]:
        if self._pool is None:
            self._pool = MediaPool(self._limits, workers=1)
        return list(self._pool.verify(self._load(task)))


def _verify(
    tasks: Iterable[Any], load: _Load, limits: MediaLimits | None, workers: int | None, cluster: RayCluster | None
) -> Iterator[tuple[_Medium, Verdict]]:
    """Yield the verdict of each medium of all tasks, in order."""
    if cluster is not None:
        yield from chain.from_iterable(ordered_map(_Verification(load, limits), tasks, cluster=cluster))
        return
    media = enumerate(chain.from_iterable(map(load, tasks)))
    numbered = (((number, medium), modality, data) for number, (medium, modality, data) in media)
    early: dict[int, tuple[_Medium, Verdict]] = {}
    due = 0
    with MediaPool(limits, workers) as pool:
        for (number, medium), verdict in pool.verify(numbered):
            early[number] = medium, verdict
            while due in early:
                yield early.pop(due)
                due += 1


def _no_progress(task: str, done: int = 0, total: int | None = None) -> None:
    """Report nothing."""


def check_manifest(
    manifest: Manifest,
    *,
    limits: MediaLimits | None = None,
    workers: int | None = None,
    cluster: RayCluster | None = None,
    text: TextSettings | None = None,
    progress: ProgressCallback = _no_progress,
) -> Report:
    """Check a manifest that was opened with ``bad_rows="quarantine"``: its rows first, then their content as one stream.

    Args:
        manifest: the manifest.
        limits: limits of each medium.
        workers: number of processes that decode, without a cluster.
        cluster: where media are read and decoded, each task by one process (default: on this machine).
        text: how a recipe reads text, to count unknown tokens.
        progress: called with the number of rows.

    Raises:
        UserError: if the file cannot be read to its end, or its header is wrong.
    """
    report = Report(manifest.origin.path)
    checks = ItemChecks(report.findings, text)
    progress("checking rows", 0, None)
    report.rows = manifest.check(needs_good=False)
    for kind, position, reason in manifest.bad_rows():
        report.findings.add(kind, reason, _line(Place.at(manifest.origin, position)))

    def tasks() -> Iterator[list[tuple[str, Item]]]:
        task: list[tuple[str, Item]] = []
        for number, content in enumerate(manifest.contents(unread=True), 1):
            progress("decoding media", number, report.rows)
            place = _line(content.place)
            if not isinstance(content.item, Item):
                if content.item.modality != ROW:
                    report.findings.add("no content", content.item.reason, place)
                continue
            has_media = bool(content.item.image or content.item.audio)
            for kind, reason in checks.add(content.item, has_media=has_media):
                report.findings.add(kind, reason, place)
            if has_media:
                task.append((place, content.item))
            if len(task) >= _MANIFEST_ROWS:
                yield task
                task = []
        if task:
            yield task

    for medium, verdict in _verify(tasks(), _manifest_media, limits, workers, cluster):
        report.media += 1
        kind, reason = _problem(medium, verdict)
        if kind:
            report.findings.add(kind, reason, f"{medium.at}, {medium.modality} {medium.number}")
    report.tokens = checks.finish()
    return report


def _problem(medium: _Medium, verdict: Verdict) -> tuple[str, str]:
    """Return kind and reason of the finding on a file; an empty kind if there is none."""
    suffix, form = Path(medium.name or "").suffix.lower(), verdict.form.replace("MPO", "JPEG")
    if verdict.kind or _FORMS.get(suffix, form) == form:
        return verdict.kind, verdict.reason
    return "suffix", f"{form} in a file called *{suffix}"


def check_dataset(
    dataset: Dataset,
    *,
    limits: MediaLimits | None = None,
    workers: int | None = None,
    cluster: RayCluster | None = None,
    text: TextSettings | None = None,
    progress: ProgressCallback = _no_progress,
) -> Report:
    """Check a version of a dataset: its columns, ids, texts and targets first, without its media; then every medium.

    Args:
        dataset: the version.
        limits: limits of each medium.
        workers: number of processes that decode, without a cluster.
        cluster: where media are read and decoded, each task by one process (default: on this machine).
        text: how a recipe reads text, to count unknown tokens.
        progress: called with the number of rows.
    """
    report = Report(str(dataset.path), dataset.version, len(dataset))
    for reason in _schema_problems(dataset.schema):
        report.findings.add("schema", reason)
    if report.findings.errors:
        return report  # its rows cannot be read as items
    origin = Origin("dataset", str(dataset.path.absolute()), {"version": dataset.version})

    def refuse(row: int, item: Item, kind: str, reason: str, medium: tuple[str, int] = (ROW, 0)) -> None:
        where, (modality, index) = item.id or f"row {row}", medium
        report.findings.add(kind, reason, f"{where}, {modality} {index}" if modality in ("image", "audio") else where)
        report.bad.setdefault(row, Refused.of(item, modality, index, reason, Place(origin, origin.path, row)))

    checks = ItemChecks(report.findings, text, dataset.labels)
    hashes_N, with_media_N = np.zeros(len(dataset), np.int64), np.zeros(len(dataset), np.bool_)
    for start in range(0, len(dataset), _TEXT_ROWS):
        progress("checking rows", start, len(dataset))
        rows = np.arange(start, min(start + _TEXT_ROWS, len(dataset)))
        with_media_N[rows] = dataset.facts(rows)[:, 1:].any(axis=1)
        for row, item in zip(rows.tolist(), _items(dataset, rows, refuse), strict=True):
            hashes_N[row] = hash(item.id)
            for kind, reason in checks.add(item, has_media=bool(with_media_N[row])):
                if kind == "blank text":
                    report.findings.add(kind, reason, item.id)
                else:
                    refuse(row, item, kind, reason, ("text", 0) if kind == "no content" else (ROW, 0))
    for row, item, first in _duplicates(dataset, hashes_N):
        refuse(row, item, "duplicate id", f"an earlier row has this id: row {first}")
    report.tokens = checks.finish()
    with_media = np.flatnonzero(with_media_N)
    size = _DATASET_ROWS if cluster is None else _DATASET_ROWS_ON_CLUSTER
    tasks = (with_media[start : start + size] for start in range(0, len(with_media), size))
    for medium, verdict in _verify(tasks, partial(_stored_media, dataset), limits, workers, cluster):
        progress("decoding media", medium.at, len(dataset))
        report.media += 1
        if verdict.kind:
            (item,) = dataset.take([medium.at], [])
            refuse(medium.at, item, verdict.kind, verdict.reason, (medium.modality, medium.number))
    return report


def _line(place: Place) -> str:
    return f"{Path(place.file).name}:{place.row}"


def _schema_problems(schema: pa.Schema) -> Iterator[str]:
    for field_ in ITEMS:
        if field_.name not in schema.names:
            yield f"column {field_.name} is missing"
    fixed = {of.name: of.type for of in (*ITEMS, *SAMPLING, *SEGMENTS)}
    for name, kind in zip(schema.names, schema.types, strict=True):
        expected = pa.float32() if name.startswith(TARGET) else fixed.get(name, kind)
        if kind != expected:
            yield f"column {name} has the type {kind}, not {expected}"


def _items(dataset: Dataset, rows: NDArray[np.int64], refuse: Callable[[int, Item, str, str], None]) -> Iterator[Item]:
    """Yield the items of some rows without their media; a row whose roles or times are invalid is refused, without its text."""
    try:
        yield from dataset.take(rows, ["text"])
        return
    except (UserError, ValueError):
        pass
    for row in rows.tolist():
        try:
            yield from dataset.take([row], ["text"])
        except (UserError, ValueError) as error:
            (item,) = dataset.take([row], [])
            refuse(row, item, "schema", str(error).removeprefix(f"item {item.id}: "))
            yield item


def _duplicates(dataset: Dataset, hashes_N: NDArray[np.int64]) -> Iterator[tuple[int, Item, int]]:
    """Yield the rows whose id an earlier row has, with their items and the earlier row; memory is some bytes a row."""
    ordered_N = np.sort(hashes_N)
    repeated = np.unique(ordered_N[1:][ordered_N[1:] == ordered_N[:-1]])
    rows = np.flatnonzero(np.isin(hashes_N, repeated))
    first: dict[str, int] = {}
    for start in range(0, len(rows), _TEXT_ROWS):
        part = rows[start : start + _TEXT_ROWS]
        for row, item in zip(part.tolist(), dataset.take(part, []), strict=True):
            if item.id and (earlier := first.setdefault(item.id, row)) != row:
                yield row, item, earlier


def _manifest_media(task: Sequence[tuple[str, Item]]) -> Iterator[tuple[_Medium, Modality, bytes]]:
    """Yield the media of items, each with its place; their files are read."""
    for place, item in task:
        files = item.files if isinstance(item, UnreadItem) else {}
        for modality, index, data in media_of(read_item(item)):
            yield _Medium(place, modality, index, files[modality][index] if modality in files else None), modality, data


def _stored_media(dataset: Dataset, rows: NDArray[np.int64]) -> Iterator[tuple[_Medium, Modality, bytes]]:
    """Yield the media of some rows; as many rows are read at once as hold some megabytes."""
    start, count = 0, 4
    while start < len(rows):
        part = rows[start : start + count]
        read = 0
        for row, item in zip(part.tolist(), dataset.take(part, ["image", "audio"]), strict=True):
            for modality, index, data in media_of(item):
                read += len(data)
                yield _Medium(row, modality, index), modality, data
        start += count
        count = max(1, min(256, 2 * count, int(count * _MEDIA_BYTES / max(read, 1))))
