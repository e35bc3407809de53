"""A folder of monitoring results as one tracked run in Weights & Biases."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from vigil_data.errors import UserError
from vigil_monitoring.report import windows
from vigil_monitoring.report.dashboard import Dashboard
from vigil_training.recipe.specs import TrackingSpec
from vigil_training.tracking.monitored_windows import Table, TrackedWindows, track_windows


def track_report(folder: Path, dashboard: Dashboard, project: TrackingSpec) -> TrackedWindows:
    """Add what is new in a folder of results to its tracked run.

    Args:
        folder: the results.
        dashboard: what was read from them.
        project: where to; see :func:`tracked_project`.

    Raises:
        UserError: if another process adds to the tracked run.
        Failure: if W&B's library fails.
    """
    history, last = dashboard.history, dashboard.load[-1:]
    config: dict[str, Sequence[str]] = {
        "policies": history.policies if history is not None else [load.policy for load in last],
        "bundles": history.bundles if history is not None else (),
    }
    tables = {
        "estimates": Table(windows.ESTIMATE_COLUMNS, windows.estimate_rows(dashboard)),
        "drift_alarms": Table(windows.ALARM_COLUMNS, windows.alarm_rows(dashboard)),
    }
    values = windows.window_values(dashboard, datetime.now(UTC).date())
    return track_windows(folder, project, values, {name: of for name, of in tables.items() if of.rows}, config)


def tracked_project(given: str) -> TrackingSpec:
    """Return where to track, as a recipe has it, from ``[ENTITY/]PROJECT``.

    Raises:
        UserError: if it has another form.
    """
    entity, slash, project = given.rpartition("/")
    if not project or "/" in entity or (slash and not entity):
        raise UserError(f"--wandb {given}: must be PROJECT or ENTITY/PROJECT")
    return TrackingSpec(project=project, entity=entity or None)
