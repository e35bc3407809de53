"""Removal of a dataset's bad items into quarantine."""

from collections.abc import Mapping
from pathlib import Path

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.history import Change
from vigil_data.dataset.revision import delete_rows
from vigil_data.dataset.writer_lock import writing
from vigil_data.errors import UserError
from vigil_data.loading.packing import Refusal
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
    change = Change("check", reason, {"quarantined": len(report.bad)})
    return move_items(folder, report.bad, change, base=report.version or 0)


def move_items(folder: Path, refused: Mapping[int, Refusal], change: Change, *, base: int) -> int:
    """Move items into quarantine, and return the new version, which lacks them.

    Args:
        folder: the dataset's folder.
        refused: row number to what the quarantine keeps.
        change: what the new version is.
        base: version that the items were found in.

    Raises:
        UserError: if the dataset has changed since, or another process writes.
    """
    with writing(folder):
        if Dataset(folder).version != base:
            raise UserError(f"dataset {folder} has changed since version {base} was checked: run the command again")
        quarantine.put(folder, list(refused.values()), command=change.command, version=base)  # first, so that none is lost
        return delete_rows(folder, sorted(refused), change, base=base)
