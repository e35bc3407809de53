"""Erasure of items or authors from a traffic log: the files that have them are written again without them."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import StrPath, recover_file, remove, replaced_file, write_file
from vigil_data.progress import ProgressCallback
from vigil_serving.traffic.folder import ROTATE, Part, days_of, parts_of, segment_of
from vigil_serving.traffic.segments import read_segment, recover

WAIT_SECONDS = 30.0
"""Time for servers to finish their segments after they were asked to."""
LEFTOVER_SECONDS = 3600.0
"""Age of a temporary file that no process is writing any more."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure removed.

    Attributes:
        rows: decisions that were removed.
        files: files that had them.
    """

    rows: int
    files: int


def erase_traffic(
    folder: StrPath,
    ids: Collection[str] = (),
    authors: Collection[str] = (),
    *,
    wait_seconds: float = WAIT_SECONDS,
    progress: ProgressCallback | None = None,
) -> Erased:
    """Remove all decisions on items, or of authors, from a log; a kill leaves each file as it was or without them.

    Servers that write the log finish their segments first, on request.

    Args:
        folder: the log.
        ids: ids of items.
        authors: values of the column ``author``.
        wait_seconds: time for servers to finish their segments.
        progress: called with the files done and the total.

    Raises:
        UserError: if it is not a log, or nothing is named.
        Failure: if a file cannot be written, or a server still has decisions to erase in a segment.
    """
    folder, report = Path(folder), progress or (lambda *_: None)
    if not days_of(folder):
        raise UserError(f"{folder}: is no traffic log (it has no folder day=YYYY-MM-DD); name the folder given as --log")
    if not ids and not authors:
        raise UserError("name what to erase: --erase-id or --erase-author")
    _finish_segments(folder, wait_seconds)
    _remove_leftovers(folder)
    rows = files = 0
    parts = [part for part in parts_of(folder) if not part.active]
    for done, part in enumerate(parts):
        report("erasing", done, len(parts))
        if found := _erase_from(part.file, ids, authors):
            rows, files = rows + found, files + 1
    report("erasing", len(parts), len(parts))
    for part in parts_of(folder):
        if part.active and (left := _in_segment(part, ids, authors)):
            raise Failure(
                f"{part.file}: a server still writes {left} of the decisions; {rows} others are erased; stop the server or wait, "
                "and run the command again"
            )
    return Erased(rows, files)


def _finish_segments(folder: Path, wait_seconds: float) -> None:
    """Recover segments of the dead, and wait until the living have finished those that they have now."""
    recover(folder)
    active = {part.file for part in parts_of(folder) if part.active}
    if not active:
        return
    write_file(folder / ROTATE, "")
    end = time.monotonic() + wait_seconds
    while time.monotonic() < end and any(file.exists() for file in active):
        time.sleep(0.05)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files that kills left: next to a complete file, or old and without a segment that becomes one."""
    for part in parts_of(folder):
        if not part.active:
            recover_file(part.file)
    for _, path in days_of(folder):
        for file in path.glob(".part-*.partial.parquet"):
            complete = file.with_name(f"{file.name[1:].split('.')[0]}.parquet")
            try:
                old = time.time() - file.stat().st_mtime > LEFTOVER_SECONDS
            except FileNotFoundError:  # it was complete meanwhile
                continue
            if old and not segment_of(complete).exists():
                remove(file)


def _erase_from(file: Path, ids: Collection[str], authors: Collection[str]) -> int:
    """Write a file without the decisions; return their number."""
    try:
        with pq.ParquetFile(file) as opened:
            keys = opened.read(columns=["id", "author"])
            found = int(pc.sum(_doomed(keys, ids, authors)).as_py() or 0)
            if found == keys.num_rows:
                file.unlink()
            elif found:
                with replaced_file(file) as partial, pq.ParquetWriter(partial, opened.schema_arrow, compression="zstd") as writer:
                    for group in range(opened.num_row_groups):
                        table = opened.read_row_group(group)
                        writer.write_table(table.filter(pc.invert(_doomed(table, ids, authors))))
    except FileNotFoundError:  # removed by retention
        return 0
    except (OSError, pa.ArrowInvalid) as error:
        raise Failure(f"{file}: cannot be read: {str(error).splitlines()[0]}; remove it, and run the command again") from None
    return found


def _in_segment(part: Part, ids: Collection[str], authors: Collection[str]) -> int:
    try:
        return sum(pc.sum(_doomed(batch, ids, authors)).as_py() or 0 for batch in read_segment(part.file))
    except FileNotFoundError:  # it is a Parquet file by now
        return 0


def _doomed(rows: pa.Table | pa.RecordBatch, ids: Collection[str], authors: Collection[str]) -> pa.Array:
    def one_of(column: str, values: Sequence[str]) -> pa.Array:
        return pc.is_in(rows[column], pa.array(values, pa.string()))

    return pc.or_(one_of("id", [*ids]), one_of("author", [*authors]))
