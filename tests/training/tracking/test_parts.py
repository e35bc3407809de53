"""Parts of a tracked run: reading, repairing, rewinding and copying `.wandb` files."""

import io
import json
import os
import random
import shutil
import struct
import time

import pytest
import wandb_log
from hypothesis import given
from hypothesis import strategies as st
from wandb.proto.wandb_internal_pb2 import Record

from vigil_training.tracking import parts
from vigil_training.tracking.parts import STEP_METRIC, PartCopy, Sent, read_records, repair_parts, rewind_parts, write_record


def set_old(path):
    """Make a file one of a process that ended a minute ago."""
    os.utime(path, (time.time() - 60, time.time() - 60))


def write_log(path, sizes):
    """Write a `.wandb` file, and return the offsets at which a record ends."""
    ends, content = [], bytearray(b":W&B\xe1\xbe\x00")
    for size in sizes:
        data, kind_at = random.Random(size).randbytes(size), 0
        while True:
            left = 32768 - len(content) % 32768
            if left < 7:
                content += bytes(left)
                left = 32768
            piece, data = data[: left - 7], data[left - 7 :]
            kind = (1 if kind_at == 0 else 4) if not data else (2 if kind_at == 0 else 3)
            content += struct.pack("<IHB", 0, len(piece), kind) + piece
            kind_at += 1
            if not data:
                break
        ends.append(len(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return ends


def test_repair_parts_keeps_the_whole_records_of_a_file_cut_off_anywhere(tmp_path):
    path = tmp_path / "offline-run-1-a" / "run-a.wandb"
    sizes = [10, 300, 32768 - 7 - 7 - 10 - 7 - 300 - 7 - 3, 5, 100_000, 0, 70]  # three bytes of padding, and several blocks
    ends = write_log(path, sizes)
    content = path.read_bytes()
    near = {at + shift for at in (*ends, 32768, 65536, 98304) for shift in range(-9, 10)}
    for size in sorted({7, *near, *range(8, len(content), 997)}):
        if not 7 <= size <= len(content):
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content[:size])
        set_old(path)
        repair_parts(tmp_path)
        whole = max((end for end in ends if end <= size), default=0)
        assert (path.stat().st_size if path.exists() else 0) == whole
        assert path.parent.exists() == bool(whole)


def test_repair_parts_leaves_what_is_being_written(tmp_path):
    path = tmp_path / "offline-run-1-a" / "run-a.wandb"
    write_log(path, [])
    repair_parts(tmp_path)
    assert path.exists()


@given(st.lists(st.integers(0, 3 * 32768), max_size=8))
def test_write_record_writes_what_read_records_reads(sizes):
    contents = [random.Random(size).randbytes(size) for size in sizes]
    file = io.BytesIO()
    for content in contents:
        write_record(file, content)
    with FileOf(file.getvalue()) as written:
        assert [content for _, content in read_records(written)] == contents


class FileOf:
    """A file on no disk, with a descriptor, that holds bytes."""

    def __init__(self, content):
        self._file = os.fdopen(os.memfd_create("part"), "r+b")
        self._file.write(content)
        self._file.seek(0)

    def __enter__(self):
        return self._file

    def __exit__(self, *_):
        self._file.close()


def row(step, **values):
    names = {STEP_METRIC: step, "_step": step, **values}
    items = [{"nested_key": [name], "value_json": json.dumps(value)} for name, value in names.items()]
    return Record(history={"item": items}).SerializeToString()


def write_rows(folder, number, rows, *, ended=True, sent=False):
    path = folder / f"offline-run-{number}-a" / "run-a.wandb"
    (path.parent / "files").mkdir(parents=True)
    with path.open("wb") as file:
        write_record(file, Record(run={"run_id": "a", "project": "vigil"}).SerializeToString())
        for content in rows:
            write_record(file, content)
        if ended:
            write_record(file, Record(alert={"title": "preempted"}).SerializeToString())
            write_record(file, Record(exit={"exit_code": 1}).SerializeToString())
    set_old(path)
    if sent:
        path.with_name("run-a.wandb.synced").touch()
    return path


def steps_in(path):
    return [row[STEP_METRIC] for row in wandb_log.read_part(path).history]


def test_wandb_reads_what_write_record_writes_byte_for_byte(make_recipe, tmp_path):
    from vigil_training.runs.run import open_run
    from vigil_training.tracking.wandb_logger import open_wandb_logger

    recipe = make_recipe(tracking__mode="offline")
    run = open_run(recipe, recipe.model_dump_json(), tmp_path / "run")
    logger = open_wandb_logger(run, {})
    for step in range(1, 301):
        logger.log_metrics({"train/loss": 1 / step, "train/lr": 0.1}, step=step)
    logger.finish(0)
    [path] = parts.list_parts(run.path / "wandb")
    assert path.stat().st_size > 2 * 32768, "several blocks"
    copy, again = shutil.copyfile(path, tmp_path / "copy.wandb"), io.BytesIO()  # W&B's process may still add records.
    with copy.open("rb") as file:
        for _, content in read_records(file):
            write_record(again, content)
    assert again.getvalue() == copy.read_bytes()


def test_rewind_parts_removes_steps_from_the_checkpoint_on_and_keeps_the_rest(tmp_path):
    first = write_rows(tmp_path, 1, [row(1), row(10), row(20)], sent=True)
    second = write_rows(tmp_path, 2, [row(30), row(40), row(50)])
    third = write_rows(tmp_path, 3, [row(60)])
    before = first.read_bytes()
    assert rewind_parts(tmp_path, 40) == 30
    assert [steps_in(path) for path in (first, second, third)] == [[1, 10, 20], [30], []]
    assert first.read_bytes() == before
    left = wandb_log.read_part(second)
    assert (left.id, left.alerts, left.exit_code) == ("a", [("preempted", "")], 1)
    assert rewind_parts(tmp_path, 0) == 20
    assert [steps_in(path) for path in (first, second)] == [[1, 10, 20], []]


def test_rewind_parts_waits_for_the_service_of_a_killed_start(tmp_path, monkeypatch):
    path = write_rows(tmp_path, 1, [row(10), row(20)], ended=False)
    os.utime(path)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        with path.open("ab") as file:
            write_record(file, row(30))
        set_old(path)

    monkeypatch.setattr(time, "sleep", sleep)
    assert rewind_parts(tmp_path, 20) == 10
    assert len(slept) == 1
    assert 0 < slept[0] <= parts.SETTLE_SECONDS
    set_old(path)
    assert steps_in(path) == [10]


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (9, None),
        (10, {STEP_METRIC, "_step", "validation/loss"}),
        (11, {STEP_METRIC, "_step", "train/loss", "validation/loss"}),
    ],
)
def test_sent_leaves_out_what_the_server_has(step, left):
    sent = Sent(10, frozenset({STEP_METRIC, "_step", "_runtime", "train/loss"}))
    rest = sent.rest(row(step, **{"train/loss": 0.5, "validation/loss": 0.7}))
    assert (None if rest is None else parts.read_metrics(rest).keys()) == left
    assert sent.rest(row(10, **{"train/loss": 0.5})) is None
    other = Record(alert={"title": "killed"}).SerializeToString()
    assert sent.rest(other) == other


def test_part_copy_grows_with_its_part(tmp_path):
    path = write_rows(tmp_path, 1, [row(1), row(2)], ended=False)
    copy = PartCopy(path, tmp_path / "sending", Sent(1, frozenset({STEP_METRIC, "_step"})))
    set_old(copy.path)
    assert steps_in(copy.path) == [2]
    with path.open("ab") as file:
        write_record(file, row(3))
        file.write(b"\0\0\0\0\x05\0\x01ab")  # a record that is not yet complete
    copy.advance()
    copy.advance()
    set_old(copy.path)
    assert steps_in(copy.path) == [2, 3]
    assert (copy.path.parent / "files").resolve() == path.parent / "files"
