"""Layout of a traffic log: a folder for each day (UTC), with Parquet files and the segments that are still written.

``day=2026-11-29/part-*.parquet`` is complete and never changes, but for an erasure. ``day=2026-11-29/_part-*.arrows`` is a
segment: an Arrow stream that grows until it becomes the Parquet file of the same name. A reader of the folder that knows only
Parquet (DuckDB, Spark, pyarrow.dataset) skips it by its underscore.
"""

import os
import re
from datetime import date
from pathlib import Path
from typing import NamedTuple

from vigil_data.errors import UserError

_DAY = re.compile(r"day=(\d{4}-\d{2}-\d{2})")
PARQUET, SEGMENT = ".parquet", ".arrows"
ROTATE = ".rotate"
"""File whose modification asks all writers of a log to finish their segments."""


class Part(NamedTuple):
    """A file with decisions of one day.

    Attributes:
        day: the day, UTC.
        file: the file.
        active: whether it is a segment, to which a server may still append.
    """

    day: date
    file: Path
    active: bool


def day_folder(folder: Path, day: date) -> Path:
    """Return the folder of a day."""
    return folder / f"day={day.isoformat()}"


def days_of(folder: Path) -> list[tuple[date, Path]]:
    """Return the days that have a folder, in order."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _DAY.fullmatch(path.name)) and path.is_dir():
            try:
                found.append((date.fromisoformat(match[1]), path))
            except ValueError:  # such as day=2026-02-30
                continue
    return sorted(found)


def parts_of(folder: Path, start: date | None = None, end: date | None = None) -> list[Part]:
    """Return the files of a log, each decision once, by day and name.

    Args:
        folder: the log.
        start: first day (default: the first of the log).
        end: last day, inclusive (default: the last of the log).
    """
    parts = []
    for day, path in days_of(folder):
        if (start is None or start <= day) and (end is None or day <= end):
            # Segments first: one that becomes a Parquet file meanwhile is then found twice, not never.
            segments = {parquet_of(file): Part(day, file, True) for file in path.glob(f"_part-*{SEGMENT}")}
            complete = {file: Part(day, file, False) for file in path.glob(f"part-*{PARQUET}")}
            parts += [part for _, part in sorted((segments | complete).items())]
    return parts


def parquet_of(segment: Path) -> Path:
    """Return the Parquet file that a segment becomes."""
    return segment.with_name(segment.name.removeprefix("_")).with_suffix(PARQUET)


def segment_of(parquet: Path) -> Path:
    """Return the segment that becomes a Parquet file."""
    return parquet.with_name(f"_{parquet.name}").with_suffix(SEGMENT)


def make_log_folder(folder: Path) -> None:
    """Make the folder of a log if it does not exist.

    Raises:
        UserError: if it cannot be made or written, for another reason than a full disk.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder}: is a file; name a folder for the traffic log") from None
    except OSError as error:
        raise UserError(f"{folder}: the folder of the traffic log cannot be made: {error.strerror}; name another one") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: the traffic log cannot be written there; change its permissions, or name another folder")
