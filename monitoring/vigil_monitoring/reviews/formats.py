"""Queues out to other tools and decisions in from them, by format.

Example:
    >>> export_queue("label-studio", content, Export(Path("tasks.json"), policy, links))
    >>> import_reviews("label-studio", Path("export.json"), queue, ImportOptions())
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vigil_data.errors import Problems, UserError
from vigil_data.filesystem import replaced_file
from vigil_data.importers.table_reader import TableRow, read_rows
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.queues.queue import Queue
from vigil_monitoring.reviews import coop, csv_sheet, label_studio
from vigil_monitoring.reviews.answers import asked_labels, decisions_of
from vigil_monitoring.reviews.content import AskedItem, QueueContent
from vigil_monitoring.reviews.media_links import MediaLinks
from vigil_monitoring.reviews.policy import ReviewPolicy
from vigil_monitoring.reviews.rows import Skipped

FormatName = Literal["jsonl", "csv", "label-studio", "coop"]


class Export(NamedTuple):
    """How a queue is written.

    Attributes:
        policy: its version is written with each item, and its text where the tool shows it.
        links: references to pictures and audio.
        item_type: id of the item type in Coop.
    """

    policy: ReviewPolicy
    links: MediaLinks
    item_type: str | None = None


@dataclass(frozen=True)
class ImportOptions:
    """How decisions are read.

    Attributes:
        policy_version: refuse decisions under another one; it is that of decisions without one.
        reviewer: who answered, where the file does not say.
        time: when, where it does not say.
        mapping: what actions and policies of Coop mean.
        adjudicated: the decisions settle disagreements, where the file does not say.
    """

    policy_version: str | None = None
    reviewer: str | None = None
    time: str | None = None
    mapping: Path | None = None
    adjudicated: bool = False


def export_queue(name: FormatName, content: QueueContent, to: Path, options: Export) -> list[Path]:
    """Write a queue with its content for another tool, atomically.

    Args:
        name: the format.
        content: items and the labels to answer.
        to: the file.
        options: see :class:`Export`.

    Returns:
        The files that were written.

    Raises:
        UserError: if the format cannot hold what the queue has.
        Failure: if a file cannot be written.
    """
    if name == "coop" and options.item_type is None:
        raise UserError("--format coop: needs --item-type, the id of an item type in Coop")
    if name != "coop" and options.item_type is not None:
        raise UserError("--item-type: is for --format coop only")
    lines = _LINES[name](content, options)
    with replaced_file(to) as partial, partial.open("w", encoding=_ENCODINGS.get(name, "utf-8"), newline="") as file:
        file.writelines(lines)
    if name != "label-studio":
        return [to]
    configuration = to.with_suffix(".xml")
    with replaced_file(configuration) as partial:
        partial.write_text(label_studio.configuration(content, options.policy), encoding="utf-8")
    return [to, configuration]


def _jsonl(content: QueueContent, options: Export) -> Iterator[str]:
    for item, labels in content:
        value = {
            "id": item.id,
            "ask": labels,
            "policy_version": options.policy.version,
            "text": [{"role": item.role("text", n), "text": text} for n, text in enumerate(item.text)],
            "image": [{"role": item.role("image", n), "url": options.links.link(of)} for n, of in enumerate(item.image)],
            "audio": [{"role": item.role("audio", n), "url": options.links.link(of)} for n, of in enumerate(item.audio)],
        }
        yield json.dumps(value, ensure_ascii=False) + "\n"


def _with_files(items: QueueContent, name: str, links: MediaLinks) -> Iterator[AskedItem]:
    for asked in items:
        if links.folder is None and (asked.item.image or asked.item.audio):
            raise UserError(f"--format {name}: refers to pictures and audio by address; give --media DIR, where they are written")
        yield asked


_LINES: Mapping[FormatName, Callable[[QueueContent, Export], Iterator[str]]] = {
    "jsonl": _jsonl,
    "csv": lambda content, of: csv_sheet.lines(_with_files(content, "csv", of.links), of.links.link, of.policy.version),
    "label-studio": lambda content, of: label_studio.lines(content, of.links.link, of.policy.version),
    "coop": lambda content, of: coop.lines(_with_files(content, "coop", of.links), of.links.link, of.item_type or ""),
}
_ENCODINGS: Mapping[FormatName, str] = {"csv": "utf-8-sig"}
"""Spreadsheets take a file without the mark for one of another encoding."""


def import_reviews(
    name: FormatName, file: Path, queue: Queue, options: ImportOptions, stored: Mapping[tuple[Any, ...], Decision] | None = None
) -> tuple[list[Decision], Skipped]:
    """Read decisions from the file of another tool.

    Args:
        name: the format.
        file: the file.
        queue: the queue that was reviewed.
        options: see :class:`ImportOptions`.
        stored: decisions that are kept already, by their key.

    Returns:
        The decisions, and what was left out.

    Raises:
        UserError: one line for each different mistake; see :func:`vigil_monitoring.reviews.answers.read_reviews`.
    """
    if name != "coop" and options.mapping is not None:
        raise UserError("--mapping: is for --format coop only")
    problems, skipped = Problems(), Skipped()
    if name == "label-studio":
        rows = label_studio.rows(file, problems, skipped)
    elif name == "coop":
        if options.mapping is None:
            raise UserError("--format coop: needs --mapping, what Coop's actions mean; see docs/monitor-reviews.md")
        mapping = coop.read_mapping(options.mapping, queue.record.labels)
        rows = coop.rows(read_rows(file, problems), problems, skipped, mapping, asked_labels(queue))
    elif name == "csv":
        rows = csv_sheet.rows(read_rows(file, problems), set(queue.table["id"].to_pylist()), skipped)
    else:
        rows = read_rows(file, problems)
    given = {"reviewer": options.reviewer, "time": options.time, "policy_version": options.policy_version}
    defaults: dict[str, Any] = {column: value for column, value in given.items() if value is not None}
    if options.adjudicated:
        defaults["adjudicated"] = True
    return decisions_of(_with_defaults(rows, defaults), problems, file, queue, options.policy_version, stored=stored), skipped


def _with_defaults(rows: Iterator[TableRow], defaults: Mapping[str, Any]) -> Iterator[TableRow]:
    for row in rows:
        absent = {name: value for name, value in defaults.items() if row.values.get(name) in (None, "")}
        yield row._replace(values={**row.values, **absent})
