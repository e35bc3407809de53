"""Reviewers' decisions: read from a file with every mistake named, and kept in ``DATASET/reviews.lance`` as they were given."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lance
import pyarrow as pa

from vigil_data.dataset.table_schema import storable
from vigil_data.errors import Problems
from vigil_data.importers.table_reader import TableRow, read_rows
from vigil_data.loading.location import has_version

TABLE = "reviews.lance"
CANNOT_TELL = "cannot tell"
"""Answer of a reviewer who abstains."""
MOST_MINUTES = 24 * 60
"""Longest time for an answer."""

REVIEWS = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("reviewer", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("policy_version", pa.string()),
        ("confidence", pa.float64()),
        ("adjudicated", pa.bool_()),
        ("minutes", pa.float64()),
        ("position", pa.string()),
        ("merged_at", pa.timestamp("us", tz="UTC")),
        ("before", pa.float32()),
    ]
)
"""The table of decisions: as in :class:`Decision`, with the time of their first merge and the item's target before it."""

_REQUIRED = ("id", "label", "value", "reviewer", "time")
_OPTIONAL = ("policy_version", "confidence", "adjudicated", "minutes")
COLUMNS = (*_REQUIRED, *_OPTIONAL)
"""Columns of a file of decisions."""

_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Decision(NamedTuple):
    """A reviewer's answer about one label of one item.

    Attributes:
        id: the item.
        label: the label.
        value: the answer in [0, 1]; ``None`` for "cannot tell".
        reviewer: who answered.
        time: when, UTC.
        policy_version: the policy version that was applied; empty if unknown.
        confidence: how sure the reviewer was, in [0, 1], if stated.
        adjudicated: whether it is the decision of an adjudicator, which settles a disagreement.
        minutes: the reviewer's time for this answer, if measured; the time for an item is the sum over its answers.
        position: where it was read, such as ``reviews.csv:17``.
    """

    id: str
    label: str
    value: float | None
    reviewer: str
    time: datetime
    policy_version: str = ""
    confidence: float | None = None
    adjudicated: bool = False
    minutes: float | None = None
    position: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, bool]:
        """What a reviewer may answer once."""
        return self.id, self.label, self.reviewer, self.policy_version, self.adjudicated


def read_decisions(
    file: Path,
    ids: Collection[str],
    labels: Collection[str],
    stored: Mapping[tuple[Any, ...], Decision],
    whose: str = "the dataset",
) -> list[Decision]:
    """Read a JSON Lines, CSV or Parquet file of decisions.

    Columns: ``id``, ``label``, ``value`` (0 to 1, or "cannot tell"), ``reviewer``, ``time``; optional ``policy_version``,
    ``confidence`` (0 to 1), ``adjudicated`` (true or false) and ``minutes`` (the reviewer's time for this answer).

    Args:
        file: the file.
        ids: the known ids.
        labels: the known labels.
        stored: decisions that are kept already, by their key.
        whose: what has these ids and labels, for messages.

    Returns:
        The decisions, in order; one that is given twice with the same answer is in the list once.

    Raises:
        UserError: one line with ``FILE:LINE`` for each different mistake of the rows.
    """
    problems = Problems()
    decisions = check_decisions(read_rows(file, problems), problems, ids, labels, stored=stored, whose=whose)
    if not decisions and not problems:
        problems.add(str(file), "no rows")
    problems.raise_if_any()
    return decisions


def check_decisions(
    rows: Iterable[TableRow],
    problems: Problems,
    ids: Collection[str],
    labels: Collection[str],
    *,
    stored: Mapping[tuple[Any, ...], Decision],
    whose: str,
) -> list[Decision]:
    """Return the decisions of rows from any format, as :func:`read_decisions`; ``problems`` collects the mistakes."""
    latest = datetime.now(UTC) + timedelta(days=1)
    seen: dict[tuple[Any, ...], Decision] = {}
    for row in rows:
        found, errors = _decision(row, latest)
        if found is not None:
            if found.id not in ids:
                errors.append(f"{whose} has no item {found.id}")
            if found.label not in labels:
                errors.append(f"{whose} has no label {found.label}; it has {', '.join(labels) or 'none'}")
            earlier = seen.setdefault(found.key, stored.get(found.key, found))
            if earlier.value != found.value:
                policy = f"policy version {found.policy_version}" if found.policy_version else "no policy version"
                errors.append(
                    f"reviewer {found.reviewer} answers {_answer(found)} for {found.label} of {found.id}, but {_answer(earlier)} "
                    f"at {earlier.position}, both under {policy}; keep one answer, or give the new one another policy version"
                )
        for error in errors:
            problems.add(row.position, error)
    return list(seen.values())


def _answer(decision: Decision) -> str:
    return CANNOT_TELL if decision.value is None else f"{decision.value:g}"


def _decision(row: TableRow, latest: datetime) -> tuple[Decision | None, list[str]]:
    """Return a row's decision, if it has one, and its mistakes."""
    values = row.values
    if unknown := [name for name in values if name not in COLUMNS]:
        return None, [f"unknown column {', '.join(unknown)}; the columns are {', '.join(COLUMNS)}"]
    errors = [f"{name} is missing" for name in _REQUIRED if values.get(name) in (None, "")]
    if errors:
        return None, errors
    value, confidence = (_share(name, values.get(name), errors) for name in ("value", "confidence"))
    minutes = _minutes(values.get("minutes"), errors)
    time = _time(values["time"], latest, errors)
    truth = values.get("adjudicated")
    adjudicated = False if truth is None else _TRUTH.get(str(truth).strip().lower())
    if adjudicated is None:
        errors.append(f"adjudicated is {_shown(truth)}, not true or false")
    if errors or time is None:
        return None, errors
    id_, label, reviewer, policy = (
        storable(str(values.get(name) or "")).strip() for name in ("id", "label", "reviewer", "policy_version")
    )
    return Decision(id_, label, value, reviewer, time, policy, confidence, bool(adjudicated), minutes, row.position), []


def _share(name: str, given: Any, errors: list[str]) -> float | None:
    """Return a number in [0, 1], or ``None`` where there is none."""
    if given is None or (name == "value" and isinstance(given, str) and _is_cannot_tell(given)):
        return None
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        hint = f', and not "{CANNOT_TELL}"' if name == "value" else ""
        errors.append(f"{name} is {_shown(given)}, not a number from 0 to 1{hint}")
    return number


def _minutes(given: Any, errors: list[str]) -> float | None:
    """Return a time in minutes; a day is the most, so that seconds and milliseconds are noticed."""
    if given is None:
        return None
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= MOST_MINUTES:
        errors.append(f"minutes is {_shown(given)}, not a number of minutes from 0 to {MOST_MINUTES}")
    return number


def _is_cannot_tell(text: str) -> bool:
    return " ".join(text.replace("_", " ").replace("-", " ").split()).lower() in (CANNOT_TELL, "can't tell")


def _time(given: Any, latest: datetime, errors: list[str]) -> datetime | None:
    try:
        moment = given if isinstance(given, datetime) else datetime.fromisoformat(given)
    except (TypeError, ValueError):
        errors.append(f"time is {_shown(given)}, not a time such as 2026-11-24T18:30:00Z")
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not _EARLIEST <= moment <= latest:
        errors.append(f"time is {_shown(given)}, {'in the future' if moment > latest else 'before 1990'}")
        return None
    return moment.astimezone(UTC)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def stored_decisions(folder: Path) -> list[Decision]:
    """Return the decisions that a dataset keeps, in the order in which they were merged."""
    if not has_version(folder / TABLE):
        return []
    rows = lance.dataset(str(folder / TABLE)).to_table(columns=list(Decision._fields)).to_pylist()
    return [Decision(**row) for row in rows]


def store_decisions(folder: Path, decisions: Sequence[Decision], before: Iterable[float | None]) -> None:
    """Add decisions to those that a dataset keeps, in one commit.

    Args:
        folder: the dataset's folder.
        decisions: the new ones.
        before: the item's target of the label before each one.
    """
    now = datetime.now(UTC)
    rows = [{**of._asdict(), "merged_at": now, "before": target} for of, target in zip(decisions, before, strict=True)]
    if rows:
        mode = "append" if has_version(folder / TABLE) else "create"
        lance.write_dataset(pa.Table.from_pylist(rows, REVIEWS), str(folder / TABLE), mode=mode)
