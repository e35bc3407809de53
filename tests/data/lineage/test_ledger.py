"""A kill loses at most the event that is being written, writers never mix, and a disk that fails stops nothing."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_data.lineage import Input, Node, read_events, record, workspace
from vigil_data.lineage.ledger import FOLDER

NODE = Node("bundle", "b" * 64, "scam", "/w/bundles/scam", {"labels": 3, "name": "señal"})

WRITER = """
import sys
from vigil_data.lineage import Input, Node, record
number = 0
while True:
    node = Node("run", f"{sys.argv[1]}-{number}", "r" * (number % 700), "/w/r", {"number": number})
    record(node, [Input("dataset", "d" * 64, "data")])
    print(number, flush=True)
    number += 1
"""


def test_record_appends_an_event_that_read_events_returns(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGIL_USER", "ann")
    monkeypatch.setattr(sys, "argv", ["/bin/vigil", "export", "runs/a", "--where", "id = 'p17'", "data.where=id != 'p17'"])
    data = Node("dataset", "d" * 64, "posts", "/w/posts", {"version": 2})
    record(NODE, [Input("checkpoint", "c" * 64, "weights"), data, NODE])
    [event] = read_events()
    assert (event.node, event.by) == (NODE, "ann")
    assert event.command == "vigil export runs/a --where '***' 'data.where=***'"
    assert event.inputs == (Input("checkpoint", "c" * 64, "weights"), data.as_input("dataset"))
    assert [file.parent for file in workspace.rglob("*.jsonl")] == [workspace / FOLDER]


def test_workspace_is_the_nearest_folder_with_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.delenv("VIGIL_WORKSPACE")
    assert workspace() == below
    (tmp_path / ".vigil").mkdir()
    assert workspace() == tmp_path
    monkeypatch.setenv("VIGIL_WORKSPACE", str(tmp_path / "other"))
    assert workspace() == tmp_path / "other"


def test_read_events_ignores_a_last_line_cut_off_at_any_byte(workspace: Path) -> None:
    record(NODE)
    record(NODE, [Input("run", "5" * 8, "weights")])
    [file] = (workspace / FOLDER).iterdir()
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        file.write_bytes(whole[:end])
        assert len(list(read_events())) == 1
    file.write_bytes(whole)
    assert len(list(read_events())) == 2


def test_read_events_names_a_damaged_line_and_a_newer_format(workspace: Path) -> None:
    record(NODE)
    [file] = (workspace / FOLDER).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"a": 1}\n' + whole)
    with pytest.raises(UserError, match=rf"{file.name}:2: not an event of the ledger of lineage"):
        list(read_events())
    file.write_bytes(whole.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(UserError, match=r":1: of format 2, but this version of Vigil reads format 1"):
        list(read_events())


def test_record_in_a_forked_process_makes_a_file_of_its_own(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(NODE)
    record(NODE)
    monkeypatch.setattr("os.getpid", lambda: 1)
    record(NODE)
    assert sorted(file.read_bytes().count(b"\n") for file in (workspace / FOLDER).iterdir()) == [1, 2]


def test_killed_writers_lose_at_most_the_event_that_was_being_written(
    workspace: Path, proofs: Callable[[int, int], int], tmp_path: Path
) -> None:
    """Two processes at once; what a process printed was on disk before."""
    times = random.Random(0)
    for turn in range(proofs(2, 10)):
        names = [f"{turn}-{each}" for each in range(2)]
        outputs = [tmp_path / name for name in names]
        writers = []
        for name, output in zip(names, outputs, strict=True):
            with output.open("wb") as file:
                writers.append(subprocess.Popen([sys.executable, "-c", WRITER, name], stdout=file))
        while not all(output.stat().st_size for output in outputs):
            time.sleep(0.01)
        time.sleep(times.random() / 10)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        digests = {event.node.digest for event in read_events()}
        for name, output in zip(names, outputs, strict=True):
            printed = output.read_bytes().split(b"\n")[:-1]
            written = sorted(int(digest.rpartition("-")[2]) for digest in digests if digest.startswith(f"{name}-"))
            assert written == list(range(len(written)))
            assert len(printed) <= len(written) <= len(printed) + 1


def test_record_on_a_full_disk_warns_once_and_loses_no_other_event(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VIGIL_WORKSPACE", str(small_disk))
    record(NODE)
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    filler.write_bytes(bytes(free))
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            record(NODE)
    [warning] = caplog.messages
    assert warning.startswith(f"{small_disk / FOLDER}: lineage is not recorded: No space left on device; make it writable")
    before = len(list(read_events()))
    filler.unlink()
    record(NODE)
    assert len(list(read_events())) == before + 1


def test_record_in_a_workspace_that_cannot_be_written_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".vigil").write_text("a file, where the folder would be")
    monkeypatch.setenv("VIGIL_WORKSPACE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        record(NODE)
        record(NODE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "lineage is not recorded: " in caplog.text
    assert list(read_events()) == []
