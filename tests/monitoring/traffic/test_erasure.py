"""After an erasure no file of the log holds the items, not even the statistics in a file's footer."""

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from logged_traffic import ORIGIN, ids, logged, make, wait_for

from vigil_data.errors import Failure, UserError
from vigil_monitoring.traffic import erasure
from vigil_monitoring.traffic.erasure import Erased, erase_traffic
from vigil_serving.traffic.folder import parts_of
from vigil_serving.traffic.options import TrafficLogOptions
from vigil_serving.traffic.writer import TrafficLog


def write_log(folder: Path, *groups: tuple[int, int, dict[str, Any]], close: bool = True) -> TrafficLog:
    """A file for each group (first number, count, columns)."""
    for place, (start, count, columns) in enumerate(groups):
        log = TrafficLog(TrafficLogOptions(folder), flush_seconds=0.02)
        items, decisions = make(count, start, **columns)
        log.offer(items, decisions, ORIGIN)
        if close or place < len(groups) - 1:
            log.close()
    return log


def everything(folder: Path) -> bytes:
    """Bytes of all files, as they are and uncompressed."""
    raw = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    tables = [pq.read_table(part.file, partitioning=None).to_pylist() for part in parts_of(folder) if not part.active]
    return raw + repr(tables).encode()


def test_erase_traffic_removes_the_bytes_of_items_and_authors(tmp_path: Path) -> None:
    write_log(tmp_path, (0, 5, {"author": "ann-secret"}), (5, 5, {"author": "bob"}), (10, 1, {}), (5, 2, {"author": "bob"}))
    leftover = parts_of(tmp_path)[1].file
    leftover = leftover.with_name(f".{leftover.stem}.12345678.partial.parquet")
    leftover.write_bytes(b"item-7 of an erasure that was killed")
    assert all(word in everything(tmp_path) for word in (b"item-7", b"ann-secret"))
    assert erase_traffic(tmp_path, ["item-7", "item-10", "absent"], ["ann-secret"]) == Erased(7, 3)
    left = everything(tmp_path)
    assert not [word for word in (b"item-7", b"item-10", b"item-2", b"ann-secret") if word in left]
    assert sorted(ids(logged(tmp_path))) == ["item-5", "item-5", "item-6", "item-6", "item-8", "item-9"]
    assert erase_traffic(tmp_path, ["item-7"]) == Erased(0, 0)
    assert erase_traffic(tmp_path, ["item-5"]) == Erased(2, 2)


def test_erase_traffic_asks_living_servers_to_finish_their_segments(tmp_path: Path) -> None:
    log = write_log(tmp_path, (0, 3, {}), close=False)
    wait_for(lambda: len(logged(tmp_path)) == 3)
    assert [part.active for part in parts_of(tmp_path)] == [True]
    assert erase_traffic(tmp_path, ["item-1"]) == Erased(1, 1)
    assert b"item-1" not in everything(tmp_path)
    log.offer(*make(1, 7), ORIGIN)
    log.close()
    assert sorted(ids(logged(tmp_path))) == ["item-0", "item-2", "item-7"]


def test_erase_traffic_fails_while_a_server_keeps_a_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrafficLog, "_rotation", lambda self: 0)  # a server that does not react
    log = write_log(tmp_path, (0, 3, {}), close=False)
    wait_for(lambda: len(logged(tmp_path)) == 3)
    with pytest.raises(Failure, match=r"_part-\S+: a server still writes 1 of the decisions; 0 others are erased"):
        erase_traffic(tmp_path, ["item-1"], wait_seconds=0.1)
    assert erase_traffic(tmp_path, ["item-9"], wait_seconds=0.1) == Erased(0, 0)
    log.close()
    assert erase_traffic(tmp_path, ["item-1"], wait_seconds=0.1) == Erased(1, 1)


def test_erase_traffic_that_cannot_write_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path, (0, 3, {}))
    before = everything(tmp_path)

    def fail(path: Path) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr("vigil_data.filesystem.sync", fail)
        with pytest.raises(Failure, match="No space left on device; free some space"):
            erase_traffic(tmp_path, ["item-1"])
    assert everything(tmp_path) == before
    assert erase_traffic(tmp_path, ["item-1"]) == Erased(1, 1)


def test_erase_traffic_removes_old_leftovers_without_a_segment(tmp_path: Path) -> None:
    write_log(tmp_path, (0, 3, {}))
    old, fresh = (parts_of(tmp_path)[0].file.with_name(f".part-x.{n}2345678.partial.parquet") for n in (1, 2))
    for file in (old, fresh):
        file.write_bytes(b"half of a file")
    os.utime(old, (time.time() - 2 * erasure.LEFTOVER_SECONDS,) * 2)
    erase_traffic(tmp_path, ["item-1"])
    assert (old.exists(), fresh.exists()) == (False, True)


def test_erase_traffic_while_a_server_writes_loses_no_other_row(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    log = TrafficLog(
        TrafficLogOptions(tmp_path), lambda what, number: counts.update({what: number}), flush_seconds=0.01, segment_seconds=0.03
    )
    stop = threading.Event()

    def offer() -> None:
        n = 0
        while not stop.is_set():
            log.offer(*make(1, n), ORIGIN)
            n += 1
            time.sleep(0.002)
        counts["offered"] = n

    thread = threading.Thread(target=offer)
    thread.start()
    wait_for(lambda: len(parts_of(tmp_path)) > 2)
    erased = sum(erase_traffic(tmp_path, [f"item-{n}"], wait_seconds=5).rows for n in range(3))
    stop.set()
    thread.join()
    log.close()
    assert erased == 3
    assert sorted(ids(logged(tmp_path))) == sorted(f"item-{n}" for n in range(3, counts["offered"]))


def test_erase_traffic_refuses_what_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no traffic log"):
        erase_traffic(tmp_path, ["x"])
    write_log(tmp_path, (0, 1, {}))
    with pytest.raises(UserError, match="name what to erase"):
        erase_traffic(tmp_path)
