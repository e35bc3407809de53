"""Reading of a row of a manifest: its id, texts, targets and columns, with one line for each error.

Media and transcripts, which need the manifest's folder, are read by :class:`vigil_data.importers.manifest.Manifest`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from vigil_data.dataset.table_schema import COLUMNS, is_label
from vigil_data.errors import shown
from vigil_data.importers.threads import PARENT
from vigil_data.importers.transcripts import Cue
from vigil_data.items import SAMPLING_COLUMNS, Modality, Role, Time, read_segments, sampling_value

Medium = str | bytes
"""A path, or the content of a file."""

_INT64 = 2**63


@dataclass(slots=True)
class ParsedRow:
    """A parsed row whose media are not read yet, with one line for each of its errors in ``problems``."""

    id: str = ""
    text: list[str] = field(default_factory=list)
    image: list[Medium] = field(default_factory=list)
    audio: list[Medium] = field(default_factory=list)
    targets: dict[str, float | None] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    roles: dict[Modality, tuple[Role, ...]] = field(default_factory=dict)
    times: tuple[Time | None, ...] = ()
    transcripts: list[list[Cue]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class RowProblem(str):
    """An error of a row with the kind of finding that it is for a check; other errors are of the kind ``schema``."""

    def __new__(cls, kind: str, message: str) -> "RowProblem":
        """Return the error as text."""
        problem = super().__new__(cls, message)
        problem.kind = kind
        return problem

    kind: str


FieldReader = Callable[[ParsedRow, Any], None]
"""Reads the value of a field into a row."""


def read_id(draft: ParsedRow, value: Any) -> None:
    """Read the id."""
    if value is None:
        return
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        draft.id = str(value).strip()
    if not draft.id:
        draft.problems.append(f"id is {shown(value)}, not a string or integer")


def read_text(draft: ParsedRow, value: Any) -> None:
    """Read a text, or a list of texts."""
    if value is None:
        return
    texts = read_contents(draft, "text", value, "text")
    if all(isinstance(text, str) for text in texts):
        draft.text = texts
    else:
        draft.problems.append(f"text is {shown(value)}, not a string or a list of strings or objects")


def read_contents(draft: ParsedRow, modality: Modality, value: Any, content: str) -> list[Any]:
    """Return the contents of a modality, and keep the roles and times of those that are given as objects."""
    try:
        entries = [_without_nulls(entry) for entry in (value if isinstance(value, list) else [value])]
        contents, roles, times = read_segments(entries, modality, content)
    except ValueError as error:
        draft.problems.append(f"{modality}{error}")
        return []
    if roles:
        draft.roles[modality] = roles
    if modality == "text":
        draft.times = times
    return contents


def _without_nulls(entry: Any) -> Any:
    """Return an object without its nulls, which Parquet has for absent keys."""
    return {key: value for key, value in entry.items() if value is not None} if isinstance(entry, Mapping) else entry


def read_targets(draft: ParsedRow, value: Any) -> None:
    """Read a mapping from label to target."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        draft.problems.append(f"targets is {shown(value)}, not a mapping from label to number; in CSV write columns target.LABEL")
        return
    for label, target in value.items():
        if is_label(label):
            read_target(label, draft, target)
        else:
            draft.problems.append(label_problem(label))


def label_problem(label: str) -> str:
    """Return the error of a label that is not one."""
    return f"label {label!r} must be lower-case letters, digits and _, starting with a letter"


def read_target(label: str, draft: ParsedRow, value: Any) -> None:
    """Read the target of a label."""
    if label in draft.targets:
        draft.problems.append(f"the target of {label} is given twice")
    draft.targets[label] = None
    if value is None:
        return
    try:
        target = float(value)
    except (TypeError, ValueError, OverflowError):
        hint = "; write a decimal point, not a comma" if isinstance(value, str) and _is_number(value.replace(",", ".", 1)) else ""
        draft.problems.append(f"target.{label} is {shown(value)}, not a number{hint}")
        return
    if math.isnan(target):
        draft.problems.append(RowProblem("target", f"target.{label} is NaN; leave it empty if it is unknown"))
    elif not 0 <= target <= 1:
        draft.problems.append(RowProblem("target", f"target.{label} is {shown(value)}, outside [0, 1]"))
    else:
        draft.targets[label] = target


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_column(name: str, draft: ParsedRow, value: Any) -> None:
    """Read the value of a column to slice by."""
    if value is None:
        draft.columns[name] = None
    elif _kind(value) == "other":
        draft.problems.append(f"column {name} is {shown(value)}, not a string, number, boolean or time")
    elif isinstance(value, float) and math.isinf(value):
        draft.problems.append(f"column {name} is a number beyond the range of a 64-bit float")
    elif isinstance(value, int) and not -_INT64 <= value < _INT64:
        draft.problems.append(f"column {name} is {shown(value)}, beyond the range of a 64-bit integer; write it as a string")
    else:
        draft.columns[name] = value


def _string_column(name: str, draft: ParsedRow, value: Any) -> None:
    if value is None or isinstance(value, str):
        draft.columns[name] = value
    elif isinstance(value, int) and not isinstance(value, bool):
        draft.columns[name] = str(value)  # authors are often numbered
    else:
        draft.problems.append(f"column {name} is {shown(value)}, not a string")


def _id_column(name: str, draft: ParsedRow, value: Any) -> None:
    _string_column(name, draft, value)
    draft.columns[name] = (draft.columns.get(name) or "").strip() or None  # stripped as ids are


def _time_column(name: str, draft: ParsedRow, value: Any) -> None:
    if value is None:
        draft.columns[name] = None
        return
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        draft.problems.append(f"{name} is {shown(value)}, not a time such as 2026-11-24T18:30:00Z")
    else:
        draft.columns[name] = moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _sampling_column(name: str, draft: ParsedRow, value: Any) -> None:
    try:
        draft.columns[name] = None if value is None else sampling_value(name, value)
    except ValueError as error:
        draft.problems.append(str(error))


COLUMN_READERS: Mapping[str, Callable[[str, ParsedRow, Any], None]] = {
    **dict.fromkeys(COLUMNS.names, _string_column),
    PARENT: _id_column,
    "created_at": _time_column,
    **dict.fromkeys(SAMPLING_COLUMNS, _sampling_column),
}
"""Readers of the columns with a meaning of their own; :func:`read_column` reads the others."""


def _kind(value: Any) -> str:
    """Return the kind of a column's value; all values of a column have the same kind."""
    kind = _KINDS.get(type(value))
    return kind or next((name for type_, name in _KINDS.items() if isinstance(value, type_)), "other")


def other_kinds(columns: Mapping[str, Any], position: str, kinds: dict[str, tuple[str, str]]) -> list[str]:
    """Return the columns whose value has another kind than the first of the column; ``kinds`` has its kind and position."""
    problems = []
    for name, value in columns.items():
        if value is not None:
            kind = _kind(value)
            before, place = kinds.setdefault(name, (kind, position))
            if kind != before:
                problems.append(f"column {name} has a {kind} here, but a {before} at {place}")
    return problems


_KINDS = {bool: "boolean", str: "string", int: "number", float: "number", datetime: "time"}


def shown_names(names: tuple[str, ...]) -> str:
    """Return the names of columns for a message, shortened to 200 characters."""
    listed = ", ".join(names)
    return listed if len(listed) <= 200 else f"{listed[:197]}…"
