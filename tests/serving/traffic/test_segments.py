"""A segment is readable up to its last complete batch, wherever it was cut, and becomes a Parquet file exactly once."""

import errno
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.errors import Failure
from vigil_serving.traffic import segments
from vigil_serving.traffic.folder import parquet_of, parts_of
from vigil_serving.traffic.segments import Segment, read_segment, recover

DAY = date(2026, 11, 29)
SCHEMA = pa.schema([("id", pa.string()), ("p", pa.float32()), ("labels", pa.list_(pa.string()))])


def batch(*ids: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"id": id_, "p": 0.5, "labels": [id_]} for id_ in ids], SCHEMA)


def orphan(folder: Path, *batches: pa.RecordBatch) -> tuple[Path, list[int]]:
    """A segment whose process has died, and its size after each batch."""
    segment, sizes = Segment(folder, DAY, SCHEMA), []
    for each in batches:
        segment.append(each)
        sizes.append(segment.bytes)
    segment.release()
    return segment.file, sizes


def rows(folder: Path) -> list[str]:
    tables = [pq.read_table(part.file, partitioning=None) for part in parts_of(folder)]
    return [id_ for table in tables for id_ in table["id"].to_pylist()]


def test_recover_keeps_the_complete_batches_of_a_segment_cut_at_any_byte(tmp_path: Path) -> None:
    file, sizes = orphan(tmp_path / "whole", batch("a"), batch("b", "c"), batch("d"))
    content, complete = file.read_bytes(), [[], ["a"], ["a", "b", "c"], ["a", "b", "c", "d"]]
    assert len(content) == sizes[-1]
    for cut in range(len(content) + 1):
        expected = complete[sum(size <= cut for size in sizes)]
        log = tmp_path / "cut"
        torn = log / "day=2026-11-29" / file.name
        torn.parent.mkdir(parents=True, exist_ok=True)
        torn.write_bytes(content[:cut])
        assert [id_ for each in read_segment(torn) for id_ in each["id"].to_pylist()] == expected
        assert recover(log) == 1
        assert rows(log) == expected
        assert not torn.exists()
        parquet_of(torn).unlink(missing_ok=True)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), tail=st.binary(max_size=64), zeros=st.integers(0, 512))
def test_read_segment_survives_any_end(tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes, zeros: int) -> None:
    # What a power cut may leave after what was flushed: zeros, or bytes of another file.
    file, sizes = orphan(tmp_path_factory.mktemp("log"), batch("a", "b"), batch("c"))
    kept = min(cut, sizes[1])
    file.write_bytes(file.read_bytes()[:kept] + bytes(zeros) + tail)
    read = [id_ for each in read_segment(file) for id_ in each["id"].to_pylist()]
    whole = ["a", "b", "c"][: [0, 2, 3][sum(size <= kept for size in sizes)]]
    assert read[: len(whole)] == whole


def test_recover_leaves_the_segment_of_a_living_process(tmp_path: Path) -> None:
    living = Segment(tmp_path, DAY, SCHEMA)
    living.append(batch("a"))
    program = "import sys; from pathlib import Path; from vigil_serving.traffic.segments import recover; "
    program += "print(recover(Path(sys.argv[1])))"
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
    living.append(batch("b"))
    living.release()
    assert recover(tmp_path) == 1
    assert rows(tmp_path) == ["a", "b"]


def test_recover_finishes_what_a_kill_interrupted(tmp_path: Path) -> None:
    # Between the rename of the Parquet file and the removal of the segment: rows are read once.
    file, _ = orphan(tmp_path, batch("a", "b"))
    content = file.read_bytes()
    recover(tmp_path)
    file.write_bytes(content)
    partial = file.with_name(f".{parquet_of(file).stem}.12345678.partial.parquet")
    assert [part.active for part in parts_of(tmp_path)] == [False]
    recover(tmp_path)
    assert rows(tmp_path) == ["a", "b"]
    # While the Parquet file was written, and while the segment was made.
    parquet_of(file).unlink()
    file.write_bytes(content)
    partial.write_bytes(b"PAR1 half")
    opening = file.with_name(f".{file.name}.opening")
    opening.write_bytes(b"")
    recover(tmp_path)
    assert opening.exists(), "its process may lock it the next moment"
    os.utime(opening, (time.time() - 61, time.time() - 61))
    recover(tmp_path)
    assert rows(tmp_path) == ["a", "b"]
    assert [path.name for path in file.parent.iterdir()] == [parquet_of(file).name]


def test_append_that_fails_leaves_the_segment_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment(tmp_path, DAY, SCHEMA)
    segment.append(batch("a"))
    pwrite = os.pwrite
    room = iter([100, 0])

    def full(descriptor: int, content: bytes, offset: int) -> int:
        if (bytes_ := next(room)) == 0:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(descriptor, content[:bytes_], offset)

    monkeypatch.setattr(segments.os, "pwrite", full)
    with pytest.raises(OSError):
        segment.append(batch("b" * 1000))
    assert segment.file.stat().st_size == segment.bytes
    monkeypatch.setattr(segments.os, "pwrite", pwrite)
    segment.append(batch("c"))
    segment.finish()
    assert rows(tmp_path) == ["a", "c"]


@pytest.fixture
def full_parquet(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("vigil_data.filesystem.sync", fail)
    return monkeypatch


def test_finish_that_fails_can_be_called_again(tmp_path: Path, full_parquet: pytest.MonkeyPatch) -> None:
    segment = Segment(tmp_path, DAY, SCHEMA)
    segment.append(batch("a"))
    with pytest.raises(Failure, match="No space left on device; free some space"):
        segment.finish()
    assert [part.active for part in parts_of(tmp_path)] == [True]
    full_parquet.undo()
    segment.finish()
    assert rows(tmp_path) == ["a"]


def test_finish_splits_a_long_segment_into_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "ROW_GROUP_ROWS", 3)
    segment = Segment(tmp_path, DAY, SCHEMA)
    for n in range(5):
        segment.append(batch(f"{n}a", f"{n}b"))
    segment.finish()
    [part] = parts_of(tmp_path)
    assert pq.read_metadata(part.file).num_row_groups == 3
    assert rows(tmp_path) == [f"{n}{c}" for n in range(5) for c in "ab"]
