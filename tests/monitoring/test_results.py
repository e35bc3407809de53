import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_monitoring.results import Period, read_result, read_results, write_result

NOVEMBER = Period(date(2026, 11, 1), date(2026, 11, 30))


@dataclass(frozen=True)
class Body:
    share: float
    labels: tuple[str, ...]


def test_write_result_reads_back_as_the_dataclass(tmp_path: Path) -> None:
    write_result(tmp_path / "new" / "a.json", "prevalence", NOVEMBER, asdict(Body(0.25, ("hate", "spam"))))
    (found,) = read_results(tmp_path / "new")
    assert (found.kind, found.period, found.read(Body)) == ("prevalence", NOVEMBER, Body(0.25, ("hate", "spam")))


def test_read_results_sorts_by_period_and_skips_other_json(tmp_path: Path) -> None:
    (tmp_path / "queue.record.json").write_text('{"format": 1, "kind": "probability", "created": ""}')
    for name, month in (("a", 12), ("b", 11), ("c", 10)):
        write_result(tmp_path / f"{name}.json", "drift", Period(date(2026, month, 1), date(2026, month, 2)), {})
    assert [found.file.name for found in read_results(tmp_path)] == ["c.json", "b.json", "a.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format is 2; this Vigil reads 1"),
        ({"period": {"start": "yesterday", "end": "2026-11-30"}}, "period.start: is 'yesterday', not a date such as 2026-11-29"),
        ({"period": {"start": "2026-11-30", "end": "2026-11-29"}}, "period ends on 2026-11-29, before it starts on 2026-11-30"),
        ({"share": "half"}, "prevalence.share: must be a finite number, not 'half'"),
    ],
)
def test_read_result_names_what_is_wrong(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "a.json"
    write_result(file, "prevalence", NOVEMBER, asdict(Body(0.25, ())))
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        read_result(file).read(Body)


def test_read_results_refuses_a_damaged_file_and_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: cannot be read"):
        read_results(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_results(tmp_path / "absent")


def test_write_result_refuses_nan_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_result(tmp_path / "a.json", "prevalence", NOVEMBER, {"share": float("nan")})
    assert list(tmp_path.iterdir()) == []
