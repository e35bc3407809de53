"""``starts.jsonl``: how each start of a run began and ended, also where it ended badly."""

import json
import os

import pytest

from vigil_data.errors import Failure
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.world import World
from vigil_training.runs.starts import read_starts, record_end, record_start, this_machine


def begin(run, token):
    (run / "attempt").write_text(token)
    record_start(run, token)


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (None, "finished", ""),
        (Preempted("stopped by SIGTERM\nmore"), "preempted", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (Failure("the disk\x1b is full"), "failed", "the disk\\x1b is full"),
    ],
)
def test_record_end_appends_outcome_and_reason(tmp_path, error, outcome, reason):
    begin(tmp_path, "a")
    if error is None:
        with record_end(tmp_path, World(), "a"):
            pass
    else:
        with pytest.raises(type(error)), record_end(tmp_path, World(), "a"):
            raise error
    [start] = read_starts(tmp_path)
    assert (start.outcome, start.reason, start.pid, start.machine) == (outcome, reason, os.getpid(), this_machine())
    assert start.start <= start.end


def test_record_end_leaves_a_superseded_start_and_other_ranks_alone(tmp_path):
    begin(tmp_path, "a")
    with record_end(tmp_path, World(rank=1, size=2), "a"):
        pass
    with record_end(tmp_path, World(), "a"):
        begin(tmp_path, "b")
    assert [(start.token, start.end) for start in read_starts(tmp_path)] == [("a", None), ("b", None)]


def test_read_starts_skips_incomplete_lines(tmp_path):
    assert read_starts(tmp_path) == []
    begin(tmp_path, "a")
    lines = [
        "7",
        "[]",
        '{"event": "end", "token": "a"}',
        '{"event": "start", "token": "b", "time": "soon"}',
        "\xff",
        '{"event": "st',
    ]
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write("\n".join(lines))
    assert [start.token for start in read_starts(tmp_path)] == ["a"]


def test_fit_recipe_records_each_start_once(trained, train, make_recipe, tmp_path):
    [start] = read_starts(trained.path)
    assert (start.outcome, start.token) == ("finished", trained.attempt.read_text())
    before = trained.starts.read_text()
    train(trained.recipe, trained.path)  # it has finished: nothing starts
    assert trained.starts.read_text() == before
    with pytest.raises(Exception, match="is not a dataset"):
        train(make_recipe(data__dataset=str(tmp_path / "absent")), tmp_path / "run")
    [start] = read_starts(tmp_path / "run")
    assert start.outcome == "failed"
    assert json.loads((tmp_path / "run" / "failure.json").read_text())["lines"][0] == start.reason
