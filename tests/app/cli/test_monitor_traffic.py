"""`vigil monitor traffic` as its user runs it: counts, JSON, erasure and retention."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logged_traffic import ORIGIN, ids, logged, make

from vigil import cli
from vigil_serving.traffic.options import Origin, TrafficLogOptions
from vigil_serving.traffic.writer import TrafficLog

Vigil = Callable[..., tuple[int, str, str]]
NOW = datetime.now(UTC)


@pytest.fixture
def vigil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vigil:
    """A function that runs the command in a folder with a log of two days, and returns status, output and errors."""
    monkeypatch.chdir(tmp_path)
    for days, start in ((0, 0), (2, 10)):
        log = TrafficLog(TrafficLogOptions("log"), clock=lambda days=days: (NOW - timedelta(days=days)).timestamp())
        log.offer(*make(3, start, language="en", author=f"author{start}", exposure=2), ORIGIN)
        log.offer(*make(1, start + 3), Origin("serve", "shadow", "c" * 64, None, ("scam",)))
        log.close()

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vigil", "monitor", "traffic", *arguments])
        with pytest.raises(SystemExit) as status:
            cli.main()
        out, err = capsys.readouterr()
        return int(status.value.code or 0), out, err

    return run


def test_traffic_prints_what_a_log_has(vigil: Vigil) -> None:
    status, out, err = vigil("log")
    assert (status, err) == (0, "")
    today, before = NOW.date(), NOW.date() - timedelta(days=2)
    assert f"6 live decisions, {before} to {today}, 2 days with decisions, and 2 shadow decisions (--role shadow)" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["label", "scam", "6", "100.00%"] in lines
    assert ["label", "spam", "0", "0.00%"] in lines
    assert ["policy", "house", "3", "6", "100.00%"] in lines
    assert ["bundle", "b" * 64, "6", "100.00%"] in lines
    assert ["exposure", "known,", "12", "views", "in", "all", "6", "100.00%"] in lines
    found = json.loads(vigil("log", "--json", "--from", str(today))[1])
    assert (found["rows"], found["rows_by_day"], found["review"]) == (3, {str(today): 3}, 3)
    assert found["values"]["action"] == {"remove": 3}
    assert found["bytes"] == sum(found["bytes_by_day"].values()) > 1000


def test_traffic_counts_a_table_of_scores(vigil: Vigil) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "probability.x": [0.5, 0.25]}), "scores.parquet")
    status, out, _ = vigil("scores.parquet")
    assert status == 0
    assert "2 live decisions" in out
    assert "the table has no times: all rows count as the day when its file was written" in out


def test_traffic_erases_and_removes_old_days(vigil: Vigil) -> None:
    status, out, _ = vigil("log", "--erase-id", "item-1", "--erase-author", "author10")
    assert (status, out) == (0, "erased 4 decisions from 2 files\n")
    assert sorted(ids(logged(Path("log")))) == ["item-0", "item-13", "item-2", "item-3"]
    status, out, _ = vigil("log", "--keep-days", "2")
    assert status == 0
    assert out.startswith("removed 1 file, 0.01 MB")
    assert sorted(ids(logged(Path("log")))) == ["item-0", "item-2", "item-3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent",), "absent: does not exist; name a traffic log, a Parquet file or a folder of them"),
        (("log", "--erase-id", "x", "--json"), "--erase-id: concerns all days of the log; leave out --from, --until and --json"),
        ((".", "--keep-days", "2"), ".: is no traffic log (it has no folder day=YYYY-MM-DD); name the folder given as --log"),
        (("log", "--role", "dark"), "log: has no dark decisions; it has only live, shadow ones"),
    ],
)
def test_traffic_refuses(vigil: Vigil, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = vigil(*arguments)
    assert (status, out, err) == (2, "", f"error: {message}\n")
