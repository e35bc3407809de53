"""Traffic is the same stream of rows from a log, from its active segments and from any table of scores."""

import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from vigil_data.errors import UserError
from vigil_monitoring.traffic.reader import decisive, open_traffic
from vigil_monitoring.traffic.sources import log_source
from vigil_serving.traffic.folder import Part
from vigil_serving.traffic.schema import REASON, traffic_schema

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def decisions(*rows: dict[str, Any], labels: tuple[str, ...] = ("scam",)) -> pa.Table:
    """A part of a log; what a row lacks is null."""
    given = [{"source": "serve", "role": "live", "time": NOON, **row} for row in rows]
    return pa.Table.from_pylist(given, traffic_schema(labels))


def write(table: pa.Table, log: Path, day: str, name: str = "part-a.parquet") -> None:
    folder = log / f"day={day}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three days, two bundles with other labels, shadow decisions."""
    folder = tmp_path / "traffic"
    first = decisions(
        {"id": "a", "probability.scam": 0.25, "exposure": 10.0, "language": "en"},
        {"id": "b", "probability.scam": 0.75, "labels": ["scam"]},
        {"id": "a", "probability.scam": 0.5, "role": "shadow"},
    )
    write(first, folder, "2026-11-27")
    write(decisions({"id": "c", "probability.scam": 1.0, "time": NOON + DAY}), folder, "2026-11-28")
    last = decisions({"id": "d", "probability.hate": 0.5, "time": NOON + 2 * DAY}, labels=("hate", "scam"))
    write(last, folder, "2026-11-29")
    return folder


def test_open_traffic_reads_a_log_day_by_day(log: Path) -> None:
    traffic = open_traffic(log)
    assert traffic.labels == ("scam", "hate")
    assert traffic.days == (date(2026, 11, 27), date(2026, 11, 28), date(2026, 11, 29))
    assert traffic.rows == 4
    table = traffic.table(["id", "probability.hate", "probability.scam", "labels", "exposure"])
    assert table.to_pydict() == {
        "id": ["a", "b", "c", "d"],
        "probability.hate": [None, None, None, 0.5],
        "probability.scam": [0.25, 0.75, 1.0, None],
        "labels": [None, ["scam"], None, None],
        "exposure": [10.0, None, None, None],
    }
    assert traffic.table(["id"], days=[date(2026, 11, 28)])["id"].to_pylist() == ["c"]
    assert traffic.table(["language", "id"], days=[date(2026, 11, 27)]).column_names == ["language", "id"]
    assert traffic.table(["time"])["time"].type == pa.timestamp("us", "UTC")


def test_open_traffic_reads_one_role_and_one_period(log: Path) -> None:
    shadow = open_traffic(log, role="shadow")
    assert (shadow.rows, shadow.days) == (1, (date(2026, 11, 27),))
    assert shadow.rows_by_role == {"live": 4, "shadow": 1}
    assert shadow.table(["id", "role"]).to_pylist() == [{"id": "a", "role": "shadow"}]
    period = open_traffic(log, start=date(2026, 11, 28), end=date(2026, 11, 28))
    assert period.table(["id"])["id"].to_pylist() == ["c"]
    assert period.labels == ("scam",)


def test_open_traffic_reads_an_active_segment_up_to_where_it_was(log: Path) -> None:
    batches = decisions({"id": "e", "probability.scam": 0.5}, {"id": "f", "probability.scam": 0.5}).to_batches(1)
    segment = log / "day=2026-11-29" / "_part-b.arrows"
    with segment.open("wb") as file, pa.ipc.new_stream(file, batches[0].schema) as stream:
        stream.write_batch(batches[0])
    whole = segment.read_bytes()[:-8]  # without the mark of its end
    segment.write_bytes(whole + b"\xff\xff\xff\xff\x10")
    traffic = open_traffic(log)
    assert traffic.table(["id"])["id"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert traffic.rows == 5
    # The segment becomes a Parquet file with one row more: what was there before is read, and no row twice.
    pq.write_table(pa.Table.from_batches(batches), log / "day=2026-11-29" / "part-b.parquet")
    assert open_traffic(log).rows == 6
    segment.unlink()
    assert traffic.table(["id"])["id"].to_pylist() == ["a", "b", "c", "d", "e"]


def test_open_traffic_reads_any_table_of_scores(tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    table = {
        "id": [1, 2],
        "probability.hate.speech": [0.5, 0.25],
        "decision.hate.speech": pa.array([True, None]),
        "decision.spam": pa.array([True, None]),
        "policy": pa.array(["house 3", "house 3"]).dictionary_encode(),
        "country": pa.array(["de", None]).dictionary_encode(),
    }
    pq.write_table(pa.table(table), file)
    os.utime(file, (NOON.timestamp(), NOON.timestamp()))
    traffic = open_traffic(file)
    assert (traffic.days, traffic.assumed_day, traffic.labels) == ((NOON.date(),), NOON.date(), ("hate.speech",))
    columns = ["id", "time", "role", "probability.hate.speech", "labels", "policy", "country", "author"]
    assert traffic.table(columns).to_pylist()[0] == {
        "id": "1",
        "time": datetime(2026, 11, 27, tzinfo=UTC),
        "role": "live",
        "probability.hate.speech": 0.5,
        "labels": ["hate.speech", "spam"],
        "policy": "house 3",
        "country": "de",
        "author": None,
    }
    assert traffic.table(["labels"])["labels"].to_pylist()[1] is None


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON + DAY, NOON], pa.timestamp("ns", "Europe/Berlin")),
        pa.array(["2026-11-28T12:00:00Z", "2026-11-27T13:00:00+01:00"]),
        pa.array([date(2026, 11, 28), date(2026, 11, 27)]),
    ],
)
def test_open_traffic_takes_the_days_of_a_table_from_its_times(tmp_path: Path, times: pa.Array) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "time": times, "probability.x": [0.5, 0.5]}), tmp_path / "t.parquet")
    traffic = open_traffic(tmp_path)
    assert traffic.days == (date(2026, 11, 27), date(2026, 11, 28))
    assert [traffic.table(["id"], days=[day])["id"].to_pylist() for day in traffic.days] == [["b"], ["a"]]
    assert traffic.table(["id"])["id"].to_pylist() == ["a", "b"]
    one = open_traffic(tmp_path, start=date(2026, 11, 28))
    assert one.table(["probability.x", "time"]).num_rows == one.rows == 1


def test_open_traffic_replaces_exposures(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "views.csv"
    file.write_text("id,exposure,other\nd,7,x\nb,2.5,y\n")
    assert open_traffic(log, exposure=file).table(["exposure"])["exposure"].to_pylist() == [None, 2.5, None, 7.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,views\na,1\n", "needs the columns id and exposure; it has id, views"),
        ("id,exposure\na,1\na,2\n", "'a' has two rows; give each id once"),
        ("id,exposure\na,-1\n", "exposure -1 of 'a': must be a finite number of at least 0"),
        ("id,exposure\na,\n", "exposure nan of 'a': must be a finite number of at least 0"),
        ("id,exposure\na,many\n", "not a table of id and exposure"),
    ],
)
def test_open_traffic_refuses_exposures(log: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "views.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        open_traffic(log, exposure=file)


def test_open_traffic_names_what_is_missing(log: Path, tmp_path: Path) -> None:
    for start, end, role, message in [
        (date(2026, 12, 1), None, "live", "has no decisions from 2026-12-01; its days are 2026-11-27 to 2026-11-29"),
        (date(2026, 11, 28), None, "shadow", "has no shadow decisions from 2026-11-28; it has only live ones"),
        (date(2026, 11, 28), date(2026, 11, 27), "live", "the period ends on 2026-11-27, before it starts on 2026-11-28"),
    ]:
        with pytest.raises(UserError, match=message):
            open_traffic(log, start, end, role)
    with pytest.raises(UserError, match=r"has no column views; it has .*probability.scam"):
        open_traffic(log).table(["views"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"neither a traffic log .* nor a folder of Parquet files"):
        open_traffic(empty)
    with pytest.raises(UserError, match="does not exist; name a traffic log"):
        open_traffic(tmp_path / "absent")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"probability.x": [0.5]}, "has no column id"),
        ({"id": ["a"], "score": [0.5]}, "has no column probability.LABEL"),
        ({"id": ["a"], "probability.x": [1.5]}, "column probability.x has 1.5; probabilities are from 0 to 1"),
        ({"id": ["a"], "probability.x": ["high"]}, "column probability.x is string, not float"),
        ({"id": ["a"], "probability.x": [0.5], "time": [17]}, "column time is int64; write timestamps"),
        ({"id": ["a"], "probability.x": [0.5], "time": pa.array([None], pa.timestamp("us"))}, "time has rows without a value"),
    ],
)
def test_open_traffic_refuses_a_table(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=f"t.parquet: .*{message}|t.parquet: {message}"):
        open_traffic(tmp_path / "t.parquet").table(["id", "probability.x"])


def test_open_traffic_refuses_damaged_and_removed_files(log: Path) -> None:
    traffic = open_traffic(log)
    part = log / "day=2026-11-28" / "part-a.parquet"
    part.unlink()
    with pytest.raises(UserError, match="was removed after it was opened"):
        traffic.table(["id"])
    part.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"part-a\.parquet: not a readable Parquet file"):
        open_traffic(log)


def test_open_traffic_skips_what_has_no_rows_or_is_removed_while_it_lists(log: Path) -> None:
    (log / "day=2026-11-29" / "_part-z.arrows").write_bytes(b"")
    assert open_traffic(log).rows == 4
    day = date(2026, 11, 29)
    for name in ("part-x.parquet", "_part-x.arrows"):
        assert log_source(Part(day, log / "day=2026-11-29" / name, name.endswith("arrows"))) is None


def test_decisive_is_the_label_of_the_first_reason() -> None:
    def reasons(*labels: str) -> list[dict[str, Any]]:
        return [{"label": label, "action": "remove", "probability": 0.5, "threshold": 0.25} for label in labels]

    column = pa.array([reasons("x"), None, reasons("a", "b"), [], reasons("c")], pa.list_(REASON))
    assert decisive(column).to_pylist() == ["x", None, "a", None, "c"]
    assert decisive(column.slice(2)).to_pylist() == ["a", None, "c"]
    assert decisive(pa.chunked_array([column.slice(4), column.slice(0, 2)])).to_pylist() == ["c", "x", None]
    assert decisive(column.slice(0, 0)).to_pylist() == []
