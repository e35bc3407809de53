"""Retention of a traffic log: by days, and by size. Only complete Parquet files of the log are removed, the oldest first."""

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from vigil_serving.traffic.folder import Part, day_folder, parts_of


class Removed(NamedTuple):
    """Number of files that were removed, and their bytes."""

    files: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.files:,} {'file' if self.files == 1 else 'files'}, {self.bytes / 1e6:,.2f} MB"


def today() -> date:
    """Return the current day, UTC."""
    return datetime.now(UTC).date()


def remove_old_days(folder: Path, days: int, now: date | None = None) -> Removed:
    """Remove all but the last ``days`` days, today among them.

    Args:
        folder: the log.
        days: number of days that stay.
        now: the current day (default: by the clock, UTC).
    """
    last = (now or today()) - timedelta(days=days)
    return _remove([part for part in parts_of(folder, end=last) if not part.active], folder)


def limit_bytes(folder: Path, most: int) -> Removed:
    """Remove the oldest files until the log has at most ``most`` bytes; active segments are counted, not removed."""
    sizes = {part: _size(part.file) for part in parts_of(folder)}
    excess = sum(sizes.values()) - most
    doomed = []
    for part, size in sizes.items():
        if excess <= 0:
            break
        if not part.active:
            doomed.append(part)
            excess -= size
    return _remove(doomed, folder)


def _remove(parts: list[Part], folder: Path) -> Removed:
    files = total = 0
    for part in parts:
        size = _size(part.file)
        with suppress(FileNotFoundError):  # another server of the same log was faster
            part.file.unlink()
            files, total = files + 1, total + size
    for day in {part.day for part in parts}:
        with suppress(OSError):  # it has other files
            day_folder(folder, day).rmdir()
    return Removed(files, total)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
