"""Removal of a dataset's bad items into quarantine."""

from pathlib import Path

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.history import Change
from vigil_data.dataset.revision import delete_rows
from vigil_data.dataset.writer_lock import writing
from vigil_data.errors import UserError
from vigil_data.quality import quarantine
from vigil_data.quality.checks.check import Report


def move_to_quarantine(folder: Path, report: Report, *, reason: str = "") -> int:
    """Move the bad items of a report into quarantine, and return the new version, which lacks them.

    Older versions keep them, so that ``vigil data quarantine retry`` can restore an item; an erasure removes them there, too.

    Args:
        folder: the dataset's folder.
        report: from :func:`.check_dataset`, of the newest version.
        reason: why, for the history.

    Raises:
        UserError: if the dataset has changed since the check, or another process writes.
    """
    base = report.version or 0
    change = Change("check", reason, {"quarantined": len(report.bad)})
    with writing(folder):
        if Dataset(folder).version != base:
            raise UserError(f"dataset {folder} has changed since version {base} was checked: run the command again")
        quarantine.put(folder, list(report.bad.values()), command=change.command, version=base)  # first, so that none is lost
        return delete_rows(folder, sorted(report.bad), change, base=base)
