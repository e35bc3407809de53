"""Files of complaints and of people's measures: read, restricted to the period, and refused with FILE:LINE."""

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_monitoring.transparency import read_appeals, read_human_measures

MAY, JUNE = date(2026, 5, 1), date(2026, 5, 31)


def test_read_appeals_of_the_period(tmp_path: Path) -> None:
    file = tmp_path / "appeals.csv"
    file.write_text(
        "id,time,outcome,decided_by,decided,regarding\n"
        "a,2026-05-03T10:00:00Z,reversed,human,2026-05-04T10:00:00+02:00,account\n"
        "b,2026-05-31 23:59:00,,,,\n"
        "c,2026-06-01T00:00:00Z,,,,\n",
        encoding="utf-8",
    )
    first, second = read_appeals(file, MAY, JUNE)
    assert (first.outcome, first.decided_by, first.regarding) == ("reversed", "human", "account")
    assert first.decided == datetime(2026, 5, 4, 8, tzinfo=UTC)
    assert (second.id, second.outcome, second.regarding, second.settlement) == ("b", None, "visibility", False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a"}', "time is missing"),
        ('{"time": "2026-05-03", "appeal": 1, "id": "a"}', "unknown column appeal; the columns are id, time, outcome"),
        ('{"id": "a", "time": "yesterday"}', "time is 'yesterday', not a time such as"),
        (
            '{"id": "a", "time": "2026-05-03", "outcome": "won"}',
            "outcome is 'won'; it is one of upheld, partially reversed, reversed",
        ),
        ('{"id": "a", "time": "2026-05-03", "outcome": "upheld"}', "outcome, decided_by and decided belong together"),
        (
            '{"id": "a", "time": "2026-05-03", "outcome": "upheld", "decided_by": "human", "decided": "2026-05-02"}',
            "decided is before time",
        ),
        ('{"id": "a", "time": "2026-05-03", "settlement": "maybe"}', "settlement is 'maybe', not true or false"),
        ('{"id": "b", "time": "2026-05-01"}', "repeats {file}:1; keep one of the two rows"),
        ("{", "not JSON"),
    ],
)
def test_read_appeals_names_a_mistake_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "appeals.jsonl"
    file.write_text(f'{{"id": "b", "time": "2026-05-01"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_appeals(file, MAY, JUNE)
    (shown,) = refused.value.lines
    assert shown.startswith(f"{file}:2: ")
    assert message.replace("{file}", str(file)) in shown


def test_read_human_measures(tmp_path: Path) -> None:
    file = tmp_path / "measures.jsonl"
    file.write_text(
        '{"id": "a", "time": "2026-05-03T10:00Z", "label": "hate", "action": "remove", "detected_by": "automated"}\n'
        '{"id": "b", "time": "2026-05-03T10:00Z", "label": "hate", "action": "remove", "origin": "notice", "language": "fr"}\n',
        encoding="utf-8",
    )
    first, second = read_human_measures(file, MAY, JUNE, ["hate"], ["remove"])
    assert (first.detected_by, first.origin, first.language) == ("automated", "own initiative", None)
    assert (second.detected_by, second.origin, second.language) == ("human", "notice", "fr")
    with pytest.raises(UserError, match=r"measures\.jsonl:1: label is 'hate'; it is one of spam"):
        read_human_measures(file, MAY, JUNE, ["spam"], ["remove"])


def test_read_appeals_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        read_appeals(tmp_path / "absent.jsonl", MAY, JUNE)
