"""Monitoring in Weights & Biases: one tracked run for each folder of results, which every report continues.

A row of the tracked run is a window of traffic, with the window's last day as its time, so that the wall time is the horizontal
axis. W&B cannot change a row: each value of a window is logged once, and tables hold what the newest report says.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import Failure
from vigil_data.filesystem import locked, sha256_json, write_file
from vigil_training.runs.run import RUN_ID
from vigil_training.tracking.artifacts import server_url
from vigil_training.tracking.mode import Mode, decide_mode
from vigil_training.tracking.parts import (
    ROW_METRIC,
    list_parts,
    part_arguments,
    read_metrics,
    repair_parts,
    settled_records,
    unsent_parts,
    wandb_writes_to,
)
from vigil_training.tracking.upload import Upload, start_upload

if TYPE_CHECKING:
    import wandb

    from vigil_training.recipe.specs import TrackingSpec

LOCK = ".report.lock"
"""Held in W&B's folder by the process that adds to the tracked run."""

TABLES_DIGEST = "report/sha256"
"""Digest of the tables that were logged last."""

_TIME = "_timestamp"
"""Time of a row in W&B, seconds since 1970: its horizontal axis "wall time"."""

REMEDY = "the next report with --wandb sends it"


@dataclass(frozen=True, slots=True)
class Table:
    """A table, which replaces that of the report before.

    Attributes:
        columns: names of the columns.
        rows: the rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


@dataclass(frozen=True, slots=True)
class TrackedWindows:
    """What a report has added to the tracked run.

    Attributes:
        mode: whether the run is sent.
        reason: why.
        run_id: id of the tracked run.
        windows: number of windows with new values.
        values: number of new values.
        changed: number of values that are not those that were logged: of estimates that were made again.
    """

    mode: Mode
    reason: str
    run_id: str
    windows: int = 0
    values: int = 0
    changed: int = 0


def track_windows(
    folder: Path,
    spec: "TrackingSpec",
    windows: Mapping[date, Mapping[str, float]],
    tables: Mapping[str, Table],
    config: Mapping[str, Any],
) -> TrackedWindows:
    """Add what is new to the tracked run of a folder of results; with new values or tables, as another part.

    Args:
        folder: the results; ``wandb/`` and ``run_id`` in it hold the tracked run.
        spec: mode, project and entity.
        windows: last day of each window to its values by name.
        tables: name to table.
        config: configuration of the run.

    Raises:
        UserError: if another process adds to the tracked run.
        Failure: if W&B's library fails.
    """
    mode, reason = decide_mode(spec)
    place = folder / "wandb"
    if mode == "disabled":
        return TrackedWindows(mode, reason, "")
    with locked(place / LOCK, f"{folder}: {{owner}} is adding to its tracked run; try again when it is done"):
        run_id = _run_id(folder)
        repair_parts(place)
        logged = _Logged.read(place)
        new = {day: fresh for day in sorted(windows) if (fresh := logged.without(day, windows[day]))}
        digest = sha256_json({name: [table.columns, table.rows] for name, table in tables.items()})
        upload: Upload | None = None
        try:
            import wandb

            if new or digest != logged.tables:
                resolved = folder.resolve()
                arguments = part_arguments(run_id, f"{resolved.parent.name}/{resolved.name}", spec.project, spec.entity)
                arguments |= {"dir": folder, "job_type": "monitor", "config": {**config}}
                with wandb_writes_to(place), wandb.init(**arguments) as tracked:
                    upload = start_upload(tracked, REMEDY) if mode == "online" else None
                    _add(tracked, logged.rows + 1, new, {**tables}, digest)
            elif mode == "online" and unsent_parts(place):
                upload = Upload(place, "", server_url(), REMEDY)
        except Exception as error:  # W&B documents no base class of its errors.
            raise Failure(f"{folder}: cannot be tracked in W&B ({type(error).__name__}: {error})") from error
        finally:
            if upload is not None:
                upload.end(complete=True)
                upload.join()
    return TrackedWindows(mode, reason, run_id, len(new), sum(map(len, new.values())), logged.changed(windows))


def _add(
    tracked: "wandb.Run", row: int, windows: Mapping[date, Mapping[str, float]], tables: Mapping[str, Table], digest: str
) -> None:
    """Log a row for each window, and one with the tables."""
    tracked.define_metric(ROW_METRIC, hidden=True)
    tracked.define_metric("*", step_metric=_TIME)
    for number, (day, values) in enumerate(windows.items(), row):
        tracked.log({**values, ROW_METRIC: number, _TIME: _noon(day)}, step=number)
    last = row + len(windows)
    shown = {name: _bound(tracked, name, table, last) for name, table in tables.items()}
    tracked.log({**shown, TABLES_DIGEST: digest, ROW_METRIC: last}, step=last)


def _bound(tracked: "wandb.Run", name: str, table: Table, step: int) -> "wandb.Table":
    """Return a table in the tracked run's own files; W&B would also stage it as an artifact, by its absolute path."""
    import wandb

    made = wandb.Table(columns=[*table.columns], data=[[*row] for row in table.rows])
    made.bind_to_run(tracked, name, step)  # type: ignore[no-untyped-call]
    return made


@dataclass(slots=True)
class _Logged:
    """What the parts of a tracked run have.

    Attributes:
        values: day to its values by name, the first that were logged.
        rows: number of the last row.
        tables: digest of the tables that were logged last.
    """

    values: dict[date, dict[str, float]]
    rows: int = 0
    tables: str = ""

    @classmethod
    def read(cls, place: Path) -> "_Logged":
        found = cls({})
        for part in list_parts(place):
            for content in settled_records(part):
                row = read_metrics(content)
                found.rows = max(found.rows, row.get(ROW_METRIC, 0))
                if TABLES_DIGEST in row:
                    found.tables = row[TABLES_DIGEST]
                elif ROW_METRIC in row:
                    values = {name: value for name, value in row.items() if not name.startswith("_") and name != ROW_METRIC}
                    day = datetime.fromtimestamp(row[_TIME], UTC).date()
                    found.values[day] = values | found.values.get(day, {})
        return found

    def without(self, day: date, values: Mapping[str, float]) -> dict[str, float]:
        """Return the values of a day that were not logged."""
        return {name: value for name, value in values.items() if name not in self.values.get(day, {})}

    def changed(self, windows: Mapping[date, Mapping[str, float]]) -> int:
        """Return how many values were logged differently."""
        return sum(
            self.values.get(day, {}).get(name, value) != value
            for day, values in windows.items()
            for name, value in values.items()
        )


def _run_id(folder: Path) -> str:
    """Return the id of the folder's tracked run, which is made with the first report."""
    file = folder / RUN_ID
    if not file.is_file():
        write_file(file, uuid.uuid4().hex[:8] + "\n")
    return file.read_text(encoding="utf-8").strip()


def _noon(day: date) -> float:
    """Return the middle of a day, which has the same date in most time zones."""
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()
