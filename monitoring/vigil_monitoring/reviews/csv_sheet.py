"""Queues as sheets: CSV with one question a row, whose column ``value`` reviewers fill in with yes, no or cannot tell.

Cells that a spreadsheet would take for a formula get an apostrophe in front, which reading removes.
"""

import csv
import io
from collections.abc import Collection, Iterable, Iterator

from vigil_data.importers.table_reader import TableRow
from vigil_monitoring.reviews.content import AskedItem
from vigil_monitoring.reviews.rows import VALUES, Link, Skipped, whole_text

ANSWERS = ("value", "confidence", "minutes", "reviewer", "time")
"""Columns that reviewers fill in."""
CONTENT = ("text", "media")
"""Columns that they read, which decisions do not have."""
COLUMNS = ("id", "label", *ANSWERS, "policy_version", *CONTENT)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def lines(items: Iterable[AskedItem], link: Link, policy_version: str) -> Iterator[str]:
    """Yield the lines of the sheet, the names of the columns first."""
    yield _line(COLUMNS)
    for item, labels in items:
        media = "\n".join(link(content) for content in (*item.image, *item.audio))
        for label in labels:
            cells = (item.id, label, *("" for _ in ANSWERS), policy_version, whole_text(item), media)
            yield _line(tuple(map(_guarded, cells)))


def rows(given: Iterable[TableRow], ids: Collection[str], skipped: Skipped) -> Iterator[TableRow]:
    """Yield the rows that are answered, without the content.

    Args:
        given: rows of the sheet.
        ids: ids of the queue, which tell whether an apostrophe belongs to an id.
        skipped: counts the others.
    """
    for row in given:
        values = {name: value for name, value in row.values.items() if name not in CONTENT}
        if values.get("value") is None:
            skipped["questions without an answer"] += 1
            continue
        id_ = values.get("id")
        if isinstance(id_, str) and id_.startswith("'") and id_[1:] in ids:
            values["id"] = id_[1:]
        if isinstance(values["value"], str):
            values["value"] = VALUES.get(" ".join(values["value"].lower().split()), values["value"])
        yield row._replace(values=values)


def _line(cells: tuple[str, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()


def _guarded(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
