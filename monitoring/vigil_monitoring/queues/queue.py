"""Queue files: ``queue.jsonl`` with one decision a line, and ``queue.record.json`` that states how they were chosen.

A row is a decision of the traffic, so an id that was decided several times may be in a queue several times. Reviewers are asked
once for each id, and the answer counts for all of its rows. A row whose ``ask`` is empty was reviewed earlier and is shown to
nobody; its answers are read with the others.

Example:
    >>> queue = read_queue(Path("queue.jsonl"))
    >>> queue.table.column("inclusion_probability")
    >>> queue.record.strata
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pyarrow as pa

from vigil_data import json_fields
from vigil_data.errors import Problems, UserError, shown
from vigil_data.filesystem import write_file, write_json
from vigil_data.json_fields import Count, NonNegative, Range
from vigil_data.lineage import Input
from vigil_monitoring.queues.lineage import file_input, record_queue, traffic_inputs

FORMAT = 1
"""Version of the record."""

Kind = Literal["probability", "mined", "non-probability"]
KINDS: tuple[Kind, ...] = ("probability", "mined", "non-probability")
"""probability: each row of the population could be drawn, with a known probability. mined: the rows with a
probability are such a sample, the others were picked. non-probability: nobody knows how the rows were chosen, such as appeals."""

PURPOSES = ("estimate", "audit", "mined", "gold")
"""estimate: a row of a probability sample. audit: the same, and of the share drawn with equal probabilities. mined: picked
for training. gold: an item whose answer is known, to measure reviewers; it is no part of the population."""

PROBABILITY = "probability."
"""Prefix of the columns of probabilities."""

_TEXT, _NUMBER = pa.string(), pa.float64()
COLUMNS: Mapping[str, pa.DataType] = {
    "id": _TEXT,
    "time": pa.timestamp("us", tz="UTC"),
    "stratum": _TEXT,
    "inclusion_probability": _NUMBER,
    "purpose": _TEXT,
    "ask": pa.list_(_TEXT),
    "action": _TEXT,
    "decisive": _TEXT,
    "review": pa.bool_(),
    "presence": _TEXT,
    "content_type": _TEXT,
    "language": _TEXT,
    "market": _TEXT,
    "author": _TEXT,
    "thread": _TEXT,
    "exposure": _NUMBER,
    "bundle": _TEXT,
    "policy": _TEXT,
}
"""Columns of a queue other than ``probability.LABEL``, with their types. All may be null but id, purpose and ask."""


@dataclass(frozen=True, slots=True)
class StratumTotals:
    """A stratum of the population.

    Attributes:
        name: its name in the queue's column ``stratum``.
        items: number of decisions in the population.
        exposure: their exposure; ``None`` where the traffic has none.
        sampled: number of decisions drawn.
        certain: how many of them were certain to be drawn (inclusion probability 1).
    """

    name: str
    items: Count
    exposure: NonNegative | None
    sampled: Count
    certain: Count = 0


@dataclass(frozen=True, slots=True)
class QueueRecord:
    """How a queue was chosen.

    Attributes:
        kind: one of :data:`KINDS`.
        labels: labels that may be asked about.
        traffic: path of the traffic.
        start: first day of the period, such as ``2026-11-01``; ``None`` for traffic without times.
        end: last day, included.
        role: role of the decisions in the traffic.
        seed: seed of the draw.
        budget: number of decisions to review that was asked for.
        method: how the rows were drawn.
        design: the design, as its YAML file has it.
        strata: strata of the population; together they are the population.
        items: number of decisions in the population.
        exposure: their exposure; ``None`` where the traffic has none.
        policies: names and versions of the policies that decided.
        bundles: hashes of the bundles that decided.
        earlier: earlier queues whose rows are not asked about again.
        rows: number of rows of the queue, set by :func:`write_queue`.
        created: when it was written, ISO 8601.
        format: version of the record.
    """

    kind: Kind
    labels: tuple[str, ...]
    traffic: str = ""
    start: str | None = None
    end: str | None = None
    role: str = "live"
    seed: int = 0
    budget: Count = 0
    method: str = ""
    design: dict[str, Any] = field(default_factory=dict)
    strata: tuple[StratumTotals, ...] = ()
    items: Count = 0
    exposure: NonNegative | None = None
    policies: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    rows: Count = 0
    created: str = ""
    format: Annotated[int, Range(FORMAT, FORMAT)] = FORMAT


class Queue(NamedTuple):
    """A review queue.

    Attributes:
        table: its rows, with :data:`COLUMNS` and ``probability.LABEL`` (float32) of each label of the record.
        record: how they were chosen.
    """

    table: pa.Table
    record: QueueRecord


def record_file(path: Path) -> Path:
    """Return the path of a queue's record: ``queue.record.json`` for ``queue.jsonl``."""
    return path.with_suffix(".record.json")


def queue_table(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> pa.Table:
    """Return rows as a table with all columns of a queue, null where a row lacks one."""
    return pa.Table.from_pylist([dict(row) for row in rows], _schema(labels))


def write_queue(path: Path, queue: Queue, inputs: Sequence[Input] = ()) -> None:
    """Write a queue and its record, each atomically, and record it in the lineage.

    Args:
        path: the file, ``.jsonl``; an older queue is replaced.
        queue: the queue. Columns that it lacks are written as null; its rows are checked as when read.
        inputs: what it was made from, in addition to the traffic and the earlier queues that its record names.

    Raises:
        UserError: if a row is invalid, or the name does not end in ``.jsonl``.
        Failure: if a file cannot be written.
    """
    _check_name(path)
    table = queue_table(queue.table.to_pylist(), queue.record.labels)
    problems = Problems()
    lines = []
    for number, row in enumerate(table.to_pylist(), 1):
        for error in _errors(row, queue.record):
            problems.add(f"{path}:{number}", error)
        row["time"] = None if row["time"] is None else row["time"].isoformat().replace("+00:00", "Z")
        lines.append(json.dumps({name: value for name, value in row.items() if value is not None}, ensure_ascii=False))
    problems.raise_if_any()
    created = queue.record.created or datetime.now(UTC).isoformat(timespec="seconds")
    # The record goes first: a queue without one is refused, and one whose record counts other rows too.
    write_json(record_file(path), asdict(replace(queue.record, rows=len(lines), created=created)))
    write_file(path, "".join(f"{line}\n" for line in lines))
    of = queue.record
    drawn = traffic_inputs(of.traffic, of.bundles, of.role)
    earlier = [file_input("queue", file, "earlier") for file in of.earlier if Path(file).is_file()]
    record_queue(path, [*drawn, *earlier, *inputs], kind=of.kind, method=of.method, rows=len(lines), start=of.start, end=of.end)


def read_queue(path: Path) -> Queue:
    """Read a queue and its record.

    Raises:
        UserError: if either is absent or they do not belong together; one line with ``FILE:LINE`` for each different mistake.
    """
    _check_name(path)
    record = _read_record(path)
    problems = Problems()
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        row, errors = _row(line, record)
        for error in errors:
            problems.add(f"{path}:{number}", error)
        if row is not None:
            rows.append(row)
    problems.raise_if_any()
    if len(rows) != record.rows:
        raise UserError(
            f"{path}: {len(rows):,} rows, but {record_file(path).name} counts {record.rows:,}; rows were added or removed, which "
            "makes estimates from this queue wrong: draw it again, or restore the file"
        )
    return Queue(queue_table(rows, record.labels), record)


def _check_name(path: Path) -> None:
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: the name of a queue ends in .jsonl")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error.strerror if isinstance(error, OSError) else error}") from error


def _read_record(path: Path) -> QueueRecord:
    file = record_file(path)
    if path.exists() and not file.exists():
        raise UserError(
            f"{file}: is absent; without it nobody knows how the rows of {path.name} were chosen. Keep the two files together"
        )
    _text(path)
    try:
        value = json.loads(_text(file))
    except ValueError as error:
        raise UserError(f"{file}: is not JSON: {error}") from None
    record: QueueRecord = json_fields.structure(QueueRecord, value, str(file))
    return record


def _schema(labels: Sequence[str]) -> pa.Schema:
    return pa.schema([*COLUMNS.items(), *((f"{PROBABILITY}{label}", pa.float32()) for label in labels)])


def _row(line: str, record: QueueRecord) -> tuple[dict[str, Any] | None, list[str]]:
    """Return a line's row, if it is valid, and what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return None, [f"is not JSON: {error}"]
    if not isinstance(row, dict):
        return None, [f"must be an object, not {shown(row)}"]
    schema = _schema(record.labels)
    if unknown := [name for name in row if name not in schema.names]:
        hint = f"; the record's labels are {', '.join(record.labels)}" if unknown[0].startswith(PROBABILITY) else ""
        return None, [f"unknown column {', '.join(unknown)}{hint}"]
    errors: list[str] = []
    for name, value in row.items():
        kind = schema.field(name).type
        if name == "time" and isinstance(value, str):
            row[name] = _time(value, errors)
        elif value is not None and not _fits(value, kind):
            errors.append(f"{name} is {shown(value)}, not {_WANTED[str(kind)]}")
    errors = errors or _errors(row, record)
    return (None if errors else row), errors


_WANTED = {
    "string": "text",
    "double": "a number",
    "float": "a number",
    "bool": "true or false",
    "list<item: string>": "a list of labels",
    "timestamp[us, tz=UTC]": "a time such as 2026-11-24T18:30:00Z",
}


def _fits(value: Any, kind: pa.DataType) -> bool:
    if pa.types.is_string(kind):
        return isinstance(value, str)
    if pa.types.is_floating(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    return pa.types.is_list(kind) and isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _time(text: str, errors: list[str]) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        errors.append(f"time is {shown(text)}, not a time such as 2026-11-24T18:30:00Z")
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _errors(row: Mapping[str, Any], record: QueueRecord) -> list[str]:
    """Return what is wrong with a row whose values have the right types."""
    errors = [] if row.get("id") else ["id is missing"]
    if (purpose := row.get("purpose")) not in PURPOSES:
        errors.append(f"purpose is {shown(purpose)}, not one of {', '.join(PURPOSES)}")
    ask = row.get("ask")
    if ask is None:
        errors.append("ask is missing: the list of labels that reviewers answer, [] for none")
    elif unknown := [label for label in ask if label not in record.labels]:
        errors.append(f"ask names {', '.join(unknown)}; the record's labels are {', '.join(record.labels)}")
    probability = row.get("inclusion_probability")
    if probability is None:
        if record.kind == "probability" and purpose != "gold":
            errors.append("inclusion_probability is missing, but the record says that the queue is a probability sample")
        elif record.kind == "mined" and purpose in ("estimate", "audit"):
            errors.append(f"inclusion_probability is missing, but purpose is {purpose}")
    elif not 0 < probability <= 1:
        errors.append(f"inclusion_probability is {probability:g}, not in (0, 1]: no decision is drawn with such a probability")
    for name, value in row.items():
        if name.startswith(PROBABILITY) and value is not None and not 0 <= value <= 1:
            errors.append(f"{name} is {value:g}, not in [0, 1]")
    exposure = row.get("exposure")
    if exposure is not None and not (math.isfinite(exposure) and exposure >= 0):
        errors.append(f"exposure is {exposure:g}, not a number of at least 0")
    return errors
