"""The writer logs every decision once, loses less than a second to a kill, and never fails or delays an answer."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from logged_traffic import ORIGIN, ids, logged, make, seconds_lost, wait_for

from vigil_data.errors import UserError
from vigil_serving.traffic.folder import days_of, parts_of
from vigil_serving.traffic.options import Origin, TrafficLogOptions
from vigil_serving.traffic.segments import Segment, recover
from vigil_serving.traffic.writer import TrafficLog

KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from logged_traffic import ORIGIN, make
from vigil_serving.traffic.options import TrafficLogOptions
from vigil_serving.traffic.writer import TrafficLog
log = TrafficLog(TrafficLogOptions(sys.argv[1]), segment_seconds=0.4)
for n in range(10**9):
    items, decisions = make(1, n)
    log.offer(items, decisions, ORIGIN)
    print(n, time.time(), flush=True)
    time.sleep(0.001)
"""


def open_log(folder: Path, counts: Counter[str] | None = None, **how: Any) -> TrafficLog:
    counted = Counter() if counts is None else counts
    options = {name: how.pop(name) for name in ("columns", "days", "max_bytes") if name in how}
    return TrafficLog(TrafficLogOptions(folder, **options), lambda what, number: counted.update({what: number}), **how)


def fill(file: Path) -> None:
    """Fill a disk."""
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        while True:
            opened.write(bytes(4096))


def test_offer_logs_every_column_and_no_content(tmp_path: Path) -> None:
    log = open_log(tmp_path, columns=("campaign", "weight"))
    now = time.time()
    items, decisions = make(2, language="en", market=None, author="x", exposure=12, campaign="c1", weight=0.5, secret="words")
    log.offer(items, decisions, ORIGIN)
    log.close()
    [row, _] = logged(tmp_path)
    assert abs(row.pop("time").timestamp() - now) < 5
    assert row.pop("reasons") == [{"label": "scam", "action": "remove", "probability": 0.75, "threshold": 0.5}]
    assert row == {
        "id": "item-0",
        "source": "serve",
        "role": "live",
        "content_type": None,
        "language": "en",
        "market": None,
        "author": "x",
        "thread": None,
        "exposure": 12.0,
        "presence": "text",
        "probability.scam": 0.75,
        "probability.spam": 0.25,
        "labels": ["scam"],
        "action": "remove",
        "review": True,
        "bundle": "b" * 64,
        "policy": "house 3",
        "error": None,
        "campaign": "c1",
        "weight": "0.5",
    }
    assert b"secret" not in b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert [part.active for part in parts_of(tmp_path)] == [False]


def test_offer_separates_days_and_bundles(tmp_path: Path) -> None:
    clock = [datetime(2026, 11, 28, 23, 59, 59, tzinfo=UTC).timestamp()]
    log = open_log(tmp_path, clock=lambda: clock[0])
    other = Origin("serve", "shadow", "c" * 64, None, ("hate",))
    log.offer(*make(1), ORIGIN)
    clock[0] += 2
    log.offer(*make(1, 1), ORIGIN)
    log.offer(*make(1, 2), other)
    log.close()
    rows = logged(tmp_path)
    assert [day.isoformat() for day, _ in days_of(tmp_path)] == ["2026-11-28", "2026-11-29"]
    assert sorted((row["id"], row["time"].day, row["role"]) for row in rows) == [
        ("item-0", 28, "live"),
        ("item-1", 29, "live"),
        ("item-2", 29, "shadow"),
    ]
    shadow = next(row for row in rows if row["role"] == "shadow")
    assert (shadow["policy"], shadow["review"], shadow["reasons"], shadow["bundle"]) == (None, None, None, "c" * 64)


def test_a_day_is_finished_soon_after_midnight(tmp_path: Path) -> None:
    clock = [datetime(2026, 11, 28, 23, 59, 59, tzinfo=UTC).timestamp()]
    log = open_log(tmp_path, clock=lambda: clock[0], flush_seconds=0.02)
    log.offer(*make(1), ORIGIN)
    wait_for(lambda: [part.active for part in parts_of(tmp_path)] == [True])
    clock[0] += 2
    wait_for(lambda: [part.active for part in parts_of(tmp_path)] == [False])
    log.close()


@pytest.mark.prove
def test_a_killed_writer_loses_less_than_a_second(tmp_path: Path, proofs) -> None:
    for kill in range(proofs(2, 30)):
        folder = tmp_path / str(kill)
        command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parents[2] / "support")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.Random(kill).uniform(0.8, 2.0))
            process.send_signal(signal.SIGKILL)
            killed = time.time()
            lines = [line.split() for line in process.stdout.read().splitlines()[:-1]]  # the last may be cut off
        before = [row["id"] for row in logged(folder)]  # readable as the kill left it
        assert len(before) == len(set(before))
        recover(folder)
        assert all(not part.active for part in parts_of(folder))
        assert sorted(ids(logged(folder))) == sorted(before)
        offered = [(f"item-{n}", float(at)) for n, at in lines]
        assert seconds_lost(offered, set(before), killed) < 1.0
        assert len(before) > 100
        print(f"kill {kill}: {len(lines)} offered, {len(lines) - len(before)} lost")


def test_a_start_recovers_the_segments_of_the_dead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vigil.traffic")
    counts: Counter[str] = Counter()
    first = open_log(tmp_path, counts, flush_seconds=0.02)
    first.offer(*make(3), ORIGIN)
    wait_for(lambda: counts["rows"] == 3)
    for segment in first._segments.values():  # as a kill leaves it
        os.close(segment._descriptor)
        segment._descriptor = -1
    second = open_log(tmp_path)
    wait_for(lambda: [part.active for part in parts_of(tmp_path)] == [False])
    second.close()
    first.close()
    assert ids(logged(tmp_path)) == ["item-0", "item-1", "item-2"]
    assert "recovered 1 segments of a process that had died" in caplog.text


def test_two_writers_share_a_folder(tmp_path: Path) -> None:
    logs = [open_log(tmp_path, flush_seconds=0.02, segment_seconds=0.05) for _ in range(2)]
    for n in range(20):
        for place, log in enumerate(logs):
            log.offer(*make(1, 2 * n + place), ORIGIN)
        time.sleep(0.01)
    for log in logs:
        log.close()
    assert sorted(ids(logged(tmp_path))) == sorted(f"item-{n}" for n in range(40))


def test_a_full_disk_is_reported_once_and_rows_are_written_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts: Counter[str] = Counter()
    filler = small_disk / "filler"
    log = open_log(small_disk / "log", counts, flush_seconds=0.02)
    log.offer(*make(10), ORIGIN)
    wait_for(lambda: counts["rows"] == 10)
    fill(filler)
    n = 10
    while not counts["failed"]:  # what is left of the last page of the segment takes a few rows
        log.offer(*make(50, n), ORIGIN)
        n += 50
        time.sleep(0.01)
    start = time.perf_counter()
    log.offer(*make(50, n), ORIGIN)
    assert time.perf_counter() - start < 0.1
    n += 50
    wait_for(lambda: counts["failed"] > 3)
    assert len([r for r in caplog.records if "No space left on device" in r.message and "answers go on" in r.message]) == 1
    filler.unlink()
    wait_for(lambda: counts["rows"] == n)
    assert "is written again" in caplog.text
    log.close()
    assert sorted(ids(logged(small_disk / "log"))) == sorted(f"item-{k}" for k in range(n))
    assert counts["dropped"] == 0


def test_a_writer_that_starts_on_a_full_disk_answers_and_drops_what_does_not_fit(small_disk: Path) -> None:
    counts: Counter[str] = Counter()
    (small_disk / "log").mkdir()
    fill(small_disk / "filler")
    log = open_log(small_disk / "log", counts, flush_seconds=0.02, max_waiting=25)
    for n in range(4):
        log.offer(*make(10, 10 * n), ORIGIN)
    wait_for(lambda: counts["failed"] > 1)
    assert counts["dropped"] == 20
    log.close(5)
    assert counts["dropped"] == 40
    assert counts["rows"] == 0


def test_offer_never_waits_for_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, counts = threading.Event(), Counter[str]()
    monkeypatch.setattr(Segment, "append", lambda self, batch: hangs.wait(20) and 0)
    log = open_log(tmp_path, counts, flush_seconds=0.02, max_waiting=100)
    slowest = 0.0
    for n in range(200):
        start = time.perf_counter()
        log.offer(*make(1, n), ORIGIN)
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(0.0005)
    assert slowest < 0.2
    assert counts["dropped"] == 100
    hangs.set()
    log.close()


def test_offer_logs_text_that_is_not_unicode(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    items, decisions = make(2, author="\ud800x", exposure=10**400, language=7, market=True)
    log.offer(items, decisions, ORIGIN)
    log.close()
    assert [(row["author"], row["exposure"], row["language"], row["market"]) for row in logged(tmp_path)] == [
        ("?x", None, "7", "true")
    ] * 2


def test_a_row_that_cannot_be_logged_is_dropped_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    log = open_log(tmp_path, counts, flush_seconds=0.02)
    items, decisions = make(1)
    log.offer(items, [object()], ORIGIN)  # type: ignore[list-item]
    wait_for(lambda: counts["dropped"] == 1)
    log.offer(items, decisions, ORIGIN)
    log.close()
    assert ids(logged(tmp_path)) == ["item-0"]
    assert "1 rows dropped: AttributeError at" in caplog.text


def test_limits_remove_old_days_and_the_oldest_files(tmp_path: Path) -> None:
    clock = [datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()]
    log = open_log(tmp_path, days=3, clock=lambda: clock[0], flush_seconds=0.02, segment_seconds=0.0)
    for day in range(5):
        log.offer(*make(10, 10 * day), ORIGIN)
        wait_for(lambda day=day: len(parts_of(tmp_path)) == min(day + 1, 3) and not any(p.active for p in parts_of(tmp_path)))
        clock[0] += 86400
    log.close()
    assert [day.day for day, _ in days_of(tmp_path)][-2:] == [4, 5]
    assert "item-0" not in ids(logged(tmp_path))


def test_limit_bytes_keeps_the_log_small(tmp_path: Path) -> None:
    log = open_log(tmp_path, max_bytes=1 << 16, flush_seconds=0.01)
    for n in range(60):
        items, decisions = make(40, 40 * n, author=random.Random(n).randbytes(2000).hex())
        log.offer(items, decisions, ORIGIN)
        time.sleep(0.01)
    log.close()
    assert sum(part.file.stat().st_size for part in parts_of(tmp_path)) <= 1 << 16
    assert ids(logged(tmp_path))[-1] == "item-2399"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("author",), "--log-column author: is always logged; leave it out"),
        (("id",), "--log-column id: the log has a column of its own with this name"),
        (("probability.scam",), r"--log-column probability\.scam: the log has a column of its own"),
        (("x", "x"), "--log-column 'x': give each column once"),
    ],
)
def test_options_refuse_columns(columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrafficLogOptions("log", columns)


def test_a_log_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, message in [("file", "is a file; name a folder"), ("file/log", "cannot be made: Not a directory")]:
        with pytest.raises(UserError, match=message):
            open_log(tmp_path / folder)
