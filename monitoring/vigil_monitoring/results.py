"""Result files of `vigil monitor`: one JSON object each, with its kind and the period of traffic that it describes.

Example:
    >>> write_result(Path("results/2026-11.json"), "prevalence", Period(date(2026, 11, 1), date(2026, 11, 30)), asdict(body))
    >>> [result.kind for result in read_results(Path("results"))]
    ['prevalence']
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import make_folder, write_json

FORMAT = 1
_HEAD = ("format", "kind", "period", "created")


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """Days of traffic, both inclusive, UTC."""

    start: date
    end: date

    def __str__(self) -> str:
        return str(self.start) if self.start == self.end else f"{self.start} to {self.end}"


@dataclass(frozen=True, slots=True)
class Result:
    """A result file.

    Attributes:
        file: where it was read.
        kind: such as ``prevalence``, ``metrics``, ``drift``, ``agreement``, ``experiment`` or ``volumes``.
        period: days that it describes.
        created: when it was written, UTC.
        body: its other values; :meth:`read` checks and converts them.
    """

    file: Path
    kind: str
    period: Period
    created: datetime
    body: Mapping[str, Any]

    def read(self, kind: Any) -> Any:
        """Return the body as a dataclass.

        Args:
            kind: the dataclass, read by :func:`vigil_data.json_fields.structure`.

        Raises:
            UserError: one line with the file, if the body does not have the type.
        """
        return json_fields.structure(kind, self.body, f"{self.file}: {self.kind}")


def write_result(path: Path, kind: str, period: Period, body: Mapping[str, Any]) -> None:
    """Write a result file atomically.

    Args:
        path: the file; its folder is made.
        kind: kind of result.
        period: days that it describes.
        body: values that JSON holds, such as ``dataclasses.asdict`` of the result. Dates become ISO 8601 text; NaN is refused.
    """
    make_folder(path.parent)
    head = {
        "format": FORMAT,
        "kind": kind,
        "period": {"start": period.start.isoformat(), "end": period.end.isoformat()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # A round trip, since the writer knows neither dates nor tuples as JSON reads them.
    write_json(path, json.loads(json.dumps({**head, **body}, default=_date_text, allow_nan=False)))


def read_result(file: Path) -> Result:
    """Read a result file.

    Raises:
        UserError: one line with the file, if it cannot be read or is not a result.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    found = json_fields.mapping(value, str(file))
    if missing := [name for name in _HEAD if name not in found]:
        raise UserError(f"{file}: is not a result of vigil monitor: lacks {', '.join(missing)}")
    if found["format"] != FORMAT:
        raise UserError(f"{file}: format is {found['format']!r}; this Vigil reads {FORMAT}")
    period = json_fields.mapping(found["period"], f"{file}: period", ("start", "end"))
    start, end = (_parsed(date, period[name], f"{file}: period.{name}") for name in ("start", "end"))
    if end < start:
        raise UserError(f"{file}: period ends on {end}, before it starts on {start}")
    return Result(
        file,
        json_fields.text(found["kind"], f"{file}: kind"),
        Period(start, end),
        _parsed(datetime, found["created"], f"{file}: created"),
        {name: entry for name, entry in found.items() if name not in _HEAD},
    )


def read_results(folder: Path) -> list[Result]:
    """Read all result files (``*.json``) of a folder, in the order of their periods, then of their creation.

    JSON files that lack ``format``, ``kind``, ``period`` or ``created`` are of other commands, and left out.

    Raises:
        UserError: without such a folder, or for a result file that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; write results into it with --to {folder}/NAME.json")
    results = [read_result(file) for file in sorted(folder.glob("*.json")) if _is_result(file)]
    return sorted(results, key=lambda of: (of.period, of.created, of.file.name))


def _is_result(file: Path) -> bool:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # read_result names the problem
    return isinstance(value, dict) and set(_HEAD) <= value.keys()


def _parsed(kind: Any, value: Any, where: str) -> Any:
    try:
        return kind.fromisoformat(json_fields.text(value, where))
    except ValueError:
        example = "2026-11-29" if kind is date else "2026-11-29T18:30:00+00:00"
        raise UserError(f"{where}: is {value!r}, not a {'date' if kind is date else 'time'} such as {example}") from None


def _date_text(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{value!r} cannot be written as JSON")
