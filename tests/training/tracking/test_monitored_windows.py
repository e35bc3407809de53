"""Windows of monitoring in W&B: one run, a date for each row, no value twice; read from the `.wandb` files and from a server."""

from datetime import UTC, date, datetime

import pytest
from wandb_log import read_parts

from vigil_data.errors import UserError
from vigil_data.filesystem import locked
from vigil_training.recipe.specs import TrackingSpec
from vigil_training.tracking import upload
from vigil_training.tracking.monitored_windows import LOCK, Table, track_windows
from vigil_training.tracking.parts import ROW_METRIC

DAYS = [date(2026, 11, day) for day in (1, 2, 3)]
OFFLINE = TrackingSpec(mode="offline", project="watch")


def track(folder, values, *, spec=OFFLINE, alarms=("a b",)):
    table = Table(("kind", "examples"), [["score", ids] for ids in alarms])
    windows = {day: {"prevalence/spam": value} for day, value in zip(DAYS, values, strict=False)}
    return track_windows(folder, spec, windows, {"drift_alarms": table}, {"policies": ["house 3"], "bundles": ["b" * 64]})


def points(rows):
    """Return the dates and values of the rows that have them, in their order."""
    found = [(datetime.fromtimestamp(row["_timestamp"], UTC).date(), row.get("prevalence/spam")) for row in rows]
    return [(day, value) for day, value in found if value is not None]


def test_track_windows_logs_each_window_once_with_its_date(tmp_path):
    assert not (first := track(tmp_path, [0.1, 0.2])).changed
    assert (first.windows, first.values) == (2, 2)
    again = track(tmp_path, [0.1, 0.2])
    assert (again.run_id, again.windows, again.changed) == (first.run_id, 0, 0)
    assert len(read_parts(tmp_path)) == 1, "nothing was new"
    later = track(tmp_path, [0.1, 0.25, 0.3])
    assert (later.windows, later.values, later.changed) == (1, 1, 1)

    parts = read_parts(tmp_path)
    assert [(part.id, part.exit_code) for part in parts] == [(first.run_id, 0)] * 2
    rows = [row for part in parts for row in part.history]
    assert points(rows) == list(zip(DAYS, [0.1, 0.2, 0.3], strict=True))
    assert [row["_step"] for row in rows] == [row[ROW_METRIC] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["drift_alarms/nrows"] for row in rows if "drift_alarms/nrows" in row] == [1, 1]
    assert parts[0].config["policies"] == ["house 3"]
    metrics = [record.metric for record in parts[1].records if record.WhichOneof("record_type") == "metric"]
    assert "_timestamp" in {metric.step_metric for metric in metrics}


def test_track_windows_adds_tables_that_have_changed_and_values_of_another_name(tmp_path):
    track(tmp_path, [0.1])
    assert track(tmp_path, [0.1], alarms=("a b", "c")).windows == 0
    windows = {DAYS[0]: {"prevalence/spam": 0.1, "volume/decisions": 10}}
    assert track_windows(tmp_path, OFFLINE, windows, {}, {}).values == 1
    parts = read_parts(tmp_path)
    assert len(parts) == 3
    tables = [content.decode() for name, content in parts[1].files.items() if name.endswith(".table.json")]
    assert '"c"' in tables[0]
    assert [row["volume/decisions"] for row in parts[2].history if "volume/decisions" in row] == [10]


def test_track_windows_sends_what_earlier_reports_wrote_offline(wandb_server, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "FINISHED_SECONDS", 300.0)
    run_id = track(tmp_path, [0.1]).run_id
    online = TrackingSpec(mode="online", project="watch")
    track(tmp_path, [0.1, 0.2], spec=online)
    expected = [(DAYS[0], 0.1), (DAYS[1], 0.2)]
    for _ in range(2):
        rows = wandb_server.history[run_id]
        assert points(rows[n] for n in sorted(rows)) == expected
        marks = list((tmp_path / "wandb").glob("offline-run-*/*.synced"))
        assert len(marks) == 2
        for mark in marks:
            mark.unlink()
        track(tmp_path, [0.1, 0.2], spec=online)  # Nothing is new, and the server has all of what is sent again.
    assert list(wandb_server.history) == [run_id]


def test_track_windows_does_nothing_if_tracking_is_disabled(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracked = track(tmp_path, [0.1], spec=TrackingSpec())
    assert (tracked.mode, tracked.reason) == ("disabled", "WANDB_MODE is disabled")
    assert list(tmp_path.iterdir()) == []


def test_track_windows_of_two_processes_is_refused(tmp_path):
    with locked(tmp_path / "wandb" / LOCK, "busy"), pytest.raises(UserError, match="is adding to its tracked run"):
        track(tmp_path, [0.1])
