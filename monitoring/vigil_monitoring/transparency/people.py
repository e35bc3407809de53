"""Files of complaints with their outcomes, and of measures that people took: JSON Lines, CSV or Parquet."""

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

from vigil_data.errors import Problems
from vigil_data.importers.table_reader import TableRow, read_rows

Outcome = Literal["upheld", "partially reversed", "reversed", "omitted"]
OUTCOMES: tuple[Outcome, ...] = ("upheld", "partially reversed", "reversed", "omitted")
"""What became of a complaint, as in table 7 of the template: the decision stands, in part, or not; or no decision was taken."""
Regarding = Literal["visibility", "service", "account", "monetary", "notice", "trusted flagger notice"]
REGARDING: tuple[Regarding, ...] = ("visibility", "service", "account", "monetary", "notice", "trusted flagger notice")
"""What a complaint is about: a restriction of one of four kinds, or that none followed from a notice."""
Means = Literal["automated", "human"]
MEANS: tuple[Means, ...] = ("automated", "human")
Origin = Literal["own initiative", "notice", "trusted flagger"]
ORIGINS: tuple[Origin, ...] = ("own initiative", "notice", "trusted flagger")


class Appeal(NamedTuple):
    """A complaint to the internal complaint-handling system (Article 20).

    Attributes:
        id: the item that the decision was about.
        time: when the complaint was submitted, UTC.
        outcome: ``None`` while it is undecided.
        decided_by: who decided on it; ``None`` while it is undecided.
        decided: when, UTC.
        regarding: what it is about.
        new_restriction: whether a restriction was newly imposed as a result.
        settlement: whether it was submitted to an out-of-court dispute settlement body (Article 21) instead.
    """

    id: str
    time: datetime
    outcome: Outcome | None
    decided_by: Means | None
    decided: datetime | None
    regarding: Regarding
    new_restriction: bool
    settlement: bool


class HumanMeasure(NamedTuple):
    """A restriction that a person imposed.

    Attributes:
        id: the item.
        time: when it took effect, UTC.
        label: the label on whose ground.
        action: the action.
        detected_by: ``automated`` if a model brought the item to the person.
        origin: what led to it.
        content_type: the item's; ``None`` where it is that of the traffic.
        language: the item's; ``None`` where it is that of the traffic.
        posted: when the item was posted; ``None`` where it is that of the traffic.
    """

    id: str
    time: datetime
    label: str
    action: str
    detected_by: Means
    origin: Origin
    content_type: str | None
    language: str | None
    posted: datetime | None


_APPEAL = ("id", "time"), ("outcome", "decided_by", "decided", "regarding", "new_restriction", "settlement")
_MEASURE = ("id", "time", "label", "action"), ("detected_by", "origin", "content_type", "language", "posted")


def read_appeals(file: Path, start: date, end: date) -> list[Appeal]:
    """Read the complaints of a period.

    Columns: ``id``, ``time`` (of the complaint); optional ``outcome``, ``decided_by`` (automated or human) and ``decided``
        (time), all three or none; ``regarding`` (default: visibility), ``new_restriction`` and ``settlement`` (true or false).

    Args:
        file: the file.
        start: first day of the period.
        end: last day; complaints of other days are left out.

    Raises:
        UserError: one line with ``FILE:LINE`` for each different mistake.
    """

    def appeal(row: _Row) -> Appeal:
        decision = [row.one_of("outcome", OUTCOMES), row.one_of("decided_by", MEANS), row.time("decided")]
        if len({value is None for value in decision}) > 1 and not row.mistakes:
            row.wrong("outcome, decided_by and decided belong together; give all three, or none while the complaint is undecided")
        submitted = row.time("time")
        decided = cast("datetime | None", decision[2])
        if submitted and decided and decided < submitted:
            row.wrong("decided is before time, when the complaint was submitted")
        return Appeal(
            row.text("id") or "",
            submitted or _NEVER,
            cast("Outcome | None", decision[0]),
            cast("Means | None", decision[1]),
            decided,
            cast("Regarding", row.one_of("regarding", REGARDING) or "visibility"),
            row.flag("new_restriction"),
            row.flag("settlement"),
        )

    return _of_period(_read(file, *_APPEAL, appeal), start, end)


def read_human_measures(
    file: Path, start: date, end: date, labels: Collection[str], actions: Collection[str]
) -> list[HumanMeasure]:
    """Read the measures that people took in a period.

    Columns: ``id``, ``time`` (of the measure), ``label``, ``action``; optional ``detected_by`` (automated or human; default:
    human), ``origin`` (own initiative, notice or trusted flagger; default: own initiative), ``content_type``, ``language`` and
    ``posted`` (time; default of the three: as in the traffic).

    Args:
        file: the file.
        start: first day of the period.
        end: last day; measures of other days are left out.
        labels: labels of the mapping.
        actions: actions of the mapping that restrict something.

    Raises:
        UserError: one line with ``FILE:LINE`` for each different mistake.
    """

    def measure(row: _Row) -> HumanMeasure:
        return HumanMeasure(
            row.text("id") or "",
            row.time("time") or _NEVER,
            row.one_of("label", labels) or "",
            row.one_of("action", actions) or "",
            cast("Means", row.one_of("detected_by", MEANS) or "human"),
            cast("Origin", row.one_of("origin", ORIGINS) or "own initiative"),
            row.text("content_type"),
            row.text("language"),
            row.time("posted"),
        )

    return _of_period(_read(file, *_MEASURE, measure), start, end)


Row = TypeVar("Row", Appeal, HumanMeasure)
_NEVER = datetime(1, 1, 1, tzinfo=UTC)
"""Stands for a time that could not be read; the row is then refused."""
_TRUTH: Mapping[str, bool] = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class _Row:
    """Cells of a row, with the mistakes found in them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {name: None if value == "" else value for name, value in values.items()}
        self.mistakes: list[str] = []

    def wrong(self, what: str) -> None:
        self.mistakes.append(what)

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        return None if value is None else str(value).strip()

    def one_of(self, name: str, allowed: Collection[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in allowed:
            self.wrong(f"{name} is {value[:40]!r}; it is one of {', '.join(allowed)}")
        return value

    def flag(self, name: str) -> bool:
        value = self.text(name)
        if value is not None and value.lower() not in _TRUTH:
            self.wrong(f"{name} is {value[:40]!r}, not true or false")
        return value is not None and _TRUTH.get(value.lower(), False)

    def time(self, name: str) -> datetime | None:
        value = self._values.get(name)
        if value is None:
            return None
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        except ValueError:
            self.wrong(f"{name} is {str(value)[:40]!r}, not a time such as 2026-11-24T18:30:00Z")
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _read(file: Path, required: Collection[str], optional: Collection[str], make: Callable[[_Row], Row]) -> list[Row]:
    problems = Problems()
    found: dict[Row, str] = {}
    for row in read_rows(file, problems):
        if (made := _checked(row, required, optional, make, problems)) is None:
            continue
        if (first := found.setdefault(made, row.position)) != row.position:
            problems.add(row.position, f"repeats {first}; keep one of the two rows")
    problems.raise_if_any()
    return list(found)


def _checked(
    row: TableRow, required: Collection[str], optional: Collection[str], make: Callable[[_Row], Row], problems: Problems
) -> Row | None:
    if unknown := [name for name in row.values if name not in (*required, *optional)]:
        problems.add(row.position, f"unknown column {', '.join(unknown)}; the columns are {', '.join((*required, *optional))}")
        return None
    if missing := [name for name in required if row.values.get(name) in (None, "")]:
        problems.add(row.position, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        return None
    cells = _Row(row.values)
    made = make(cells)
    for mistake in cells.mistakes:
        problems.add(row.position, mistake)
    return None if cells.mistakes else made


def _of_period(rows: list[Row], start: date, end: date) -> list[Row]:
    return [row for row in rows if start <= row.time.date() <= end]
