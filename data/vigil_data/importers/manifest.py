"""Import of manifests: tables of texts, media paths and targets.

Every row is checked before the first media file is read, so that all errors are reported at once and within seconds.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vigil_data.dataset.table_schema import COLUMNS, is_column, is_label
from vigil_data.errors import UserError, capped
from vigil_data.importers.table_reader import TableRow, read_rows
from vigil_data.items import MODALITIES, Item

Medium = Path | bytes
_DOTTED = "target."


@dataclass(slots=True)
class _ParsedRow:
    """A parsed row whose media are not read yet, with one line for each of its errors in ``problems``."""

    id: str = ""
    text: list[str] = field(default_factory=list)
    image: list[Medium] = field(default_factory=list)
    audio: list[Medium] = field(default_factory=list)
    targets: dict[str, float | None] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check(file: Path) -> int:
    """Check every row of a manifest without reading its media; return the number of rows.

    Args:
        file: JSON Lines, CSV or Parquet. ``id`` is required; ``text`` is a string or a list; ``image`` and ``audio`` are a path
            or a list of paths relative to the manifest's folder (in Parquet also bytes); ``target.LABEL`` columns or a mapping
            ``targets`` hold numbers in [0, 1], absent or null where unknown; any other key is a column to slice by.

    Raises:
        UserError: one line for each error, by row; the first twenty and the number of the others.
    """
    problems: list[str] = []
    first: dict[str, str] = {}
    kinds: dict[str, tuple[str, str]] = {}
    rows = content = 0
    for row in read_rows(file, problems):
        rows += 1
        draft = _draft(row, file)
        content += any(modality in row.values for modality in MODALITIES)
        if draft.id and (other := first.setdefault(draft.id, row.position)) != row.position:
            draft.problems.append(f"id {draft.id} is also at {other}; ids must be unique")
        for name, value in ((name, value) for name, value in draft.columns.items() if value is not None):
            kind = _kind(value)
            before, place = kinds.setdefault(name, (kind, row.position))
            if kind != before:
                draft.problems.append(f"column {name} has a {kind} here, but a {before} at {place}")
        problems += [f"{row.position}: {problem}" for problem in draft.problems]
    if not rows and not problems:
        problems.append(f"{file} has no rows")
    elif not content and not problems:
        problems.append(f"{file}: no row has text, image or audio; check the spelling of the columns")
    if problems:
        raise UserError(*capped(problems))
    return rows


def read(file: Path) -> Iterator[Item]:
    """Yield the items of a manifest that :func:`check` has accepted, in order.

    Raises:
        UserError: if a media file is missing or unreadable.
    """
    for row in read_rows(file, []):
        draft = _draft(row, file)
        yield Item(
            draft.id,
            tuple(draft.text),
            tuple(_payload(medium, row) for medium in draft.image),
            tuple(_payload(medium, row) for medium in draft.audio),
            draft.targets,
            draft.columns,
        )


def _payload(medium: Medium, row: TableRow) -> bytes:
    if isinstance(medium, bytes):
        return medium
    try:
        return medium.read_bytes()
    except OSError as error:
        raise UserError(f"{row.position}: {medium} cannot be read: {error.strerror}") from None


def _draft(row: TableRow, file: Path) -> _ParsedRow:
    draft = _ParsedRow()
    if row.values.get("id") is None:
        draft.problems.append("id is missing")
    for name, value in row.values.items():
        if name.startswith(_DOTTED):
            _target(draft, name.removeprefix(_DOTTED), value)
        elif name in _FIELDS and value is not None:
            _FIELDS[name](draft, value, file)
        elif name not in _FIELDS:
            _column(draft, name, value)
    return draft


def _id(draft: _ParsedRow, value: Any, file: Path) -> None:  # noqa: ARG001  field readers share one signature
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        draft.id = str(value).strip()
    if not draft.id:
        draft.problems.append(f"id is {_shown(value)}, not a string or integer")


def _text(draft: _ParsedRow, value: Any, file: Path) -> None:  # noqa: ARG001
    texts = value if isinstance(value, list) else [value]
    if all(isinstance(text, str) for text in texts):
        draft.text = texts
    else:
        draft.problems.append(f"text is {_shown(value)}, not a string or a list of strings")


def _media(modality: str) -> Callable[[_ParsedRow, Any, Path], None]:
    def read_media(draft: _ParsedRow, value: Any, file: Path) -> None:
        if isinstance(value, str) and value.startswith("[") and file.suffix.lower() == ".csv":
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                draft.problems.append(f"{modality} is not a path, nor a JSON list of paths ({error.msg})")
                return
        media: list[Medium] = []
        for medium in value if isinstance(value, list) else [value]:
            if isinstance(medium, bytes):
                media.append(medium)
            elif not isinstance(medium, str) or not medium or "\0" in medium:
                draft.problems.append(f"{modality} is {_shown(medium)}, not a path")
            elif not (path := file.parent / medium).is_file():
                draft.problems.append(f"{modality} {medium} {'is not a file' if path.exists() else 'does not exist'}")
            else:
                media.append(path)
        setattr(draft, modality, media)

    return read_media


def _targets(draft: _ParsedRow, value: Any, file: Path) -> None:  # noqa: ARG001
    if not isinstance(value, Mapping):
        draft.problems.append(
            f"targets is {_shown(value)}, not a mapping from label to number; in CSV write columns target.LABEL"
        )
        return
    for label, target in value.items():
        _target(draft, label, target)


def _target(draft: _ParsedRow, label: str, value: Any) -> None:
    if not is_label(label):
        draft.problems.append(f"label {label!r} must be lower-case letters, digits and _, starting with a letter")
    if label in draft.targets:
        draft.problems.append(f"the target of {label} is given twice")
    draft.targets[label] = None
    if value is None:
        return
    try:
        target = float(value)
    except (TypeError, ValueError, OverflowError):
        draft.problems.append(f"target.{label} is {_shown(value)}, not a number")
        return
    if math.isnan(target):
        draft.problems.append(f"target.{label} is NaN; leave it empty if it is unknown")
    elif not 0 <= target <= 1:
        draft.problems.append(f"target.{label} is {_shown(value)}, outside [0, 1]")
    else:
        draft.targets[label] = target


def _column(draft: _ParsedRow, name: str, value: Any) -> None:
    if not is_column(name):
        draft.problems.append(f"a column cannot be called {name!r}; rename it")
    elif value is None:
        draft.columns[name] = None
    elif name == "created_at":
        draft.columns[name] = _time(draft, value)
    elif name in COLUMNS.names and isinstance(value, int) and not isinstance(value, bool):
        draft.columns[name] = str(value)  # authors are often numbered
    elif _kind(value) == "other" or (name in COLUMNS.names and not isinstance(value, str)):
        wanted = "a string" if name in COLUMNS.names else "a string, number, boolean or time"
        draft.problems.append(f"column {name} is {_shown(value)}, not {wanted}")
    else:
        draft.columns[name] = value


def _time(draft: _ParsedRow, value: Any) -> datetime | None:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        draft.problems.append(f"created_at is {_shown(value)}, not a time such as 2026-11-24T18:30:00Z")
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _kind(value: Any) -> str:
    """Return the kind of a column's value; all values of a column have the same kind."""
    kinds = {bool: "boolean", str: "string", int: "number", float: "number", datetime: "time"}
    return next((kind for type_, kind in kinds.items() if isinstance(value, type_)), "other")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}…"


_FIELDS: dict[str, Callable[[_ParsedRow, Any, Path], None]] = {
    "id": _id,
    "text": _text,
    "image": _media("image"),
    "audio": _media("audio"),
    "targets": _targets,
}
