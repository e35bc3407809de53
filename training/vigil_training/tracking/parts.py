"""Parts of a tracked run: the `.wandb` files in which W&B's library logs each start of a run.

A file is a header and then records in LevelDB's log format, blocks of 32 KiB with pieces of records, each with a checksum, a
length and a kind. A record is a protobuf message ``wandb_internal.Record``.

Example:
    >>> for end, content in read_records(file):
    ...     record.ParseFromString(content)
"""

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # defined when it is imported

from vigil_data.filesystem import remove, replaced_file

STEP_METRIC = "trainer/global_step"
"""Optimizer step, the horizontal axis of all metrics of a training."""

ROW_METRIC = "monitor/row"
"""Number of a row of monitoring, from 1, whose horizontal axis is time."""

SETTLE_SECONDS = 5.0
"""W&B's own service may write a part to its end after the process that tracked has ended."""

_FLUSH_SECONDS = 5.0
"""A process that is killed loses what it tracked since the last flush; an upload is late by as much."""

_PLACES = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")

_FILE_HEADER = b":W&B\xe1\xbe\x00"
_BLOCK_BYTES = 32768
_PIECE_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_POSITIONS = (STEP_METRIC, ROW_METRIC)


def list_parts(folder: Path) -> list[Path]:
    """Return the `.wandb` files of W&B's folder of a run, the oldest first."""
    return sorted(folder.glob("offline-run-*/run-*.wandb"))


def unsent_parts(folder: Path) -> list[Path]:
    """Return the `.wandb` files that have not been sent completely, the oldest first."""
    return [file for file in list_parts(folder) if not file.with_name(f"{file.name}.synced").exists()]


def read_records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the whole records of a `.wandb` file from its present position, each with the offset at which it ends.

    Ends at a record that is not complete, so a file that is being written can be read again from the last offset.
    """
    size, at = os.fstat(file.fileno()).st_size, max(file.tell(), len(_FILE_HEADER))
    content = b""
    while True:
        left = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left < _PIECE_HEADER.size:  # Padding: no header of a piece fits into the block.
            at += left
        if at + _PIECE_HEADER.size > size:
            return
        file.seek(at)
        _, length, kind = _PIECE_HEADER.unpack(file.read(_PIECE_HEADER.size))
        at += _PIECE_HEADER.size + length
        if at > size or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            return
        content = (b"" if kind in (_FULL, _FIRST) else content) + file.read(length)
        if kind in (_FULL, _LAST):
            yield at, content


def write_record(file: BinaryIO, content: bytes) -> None:
    """Append a record to a `.wandb` file, and the file's header if it is empty."""
    if file.tell() == 0:
        file.write(_FILE_HEADER)
    begun = False
    while True:
        left = _BLOCK_BYTES - file.tell() % _BLOCK_BYTES
        if left < _PIECE_HEADER.size:
            file.write(bytes(left))
            left = _BLOCK_BYTES
        piece, content = content[: left - _PIECE_HEADER.size], content[left - _PIECE_HEADER.size :]
        kind = (_LAST if begun else _FULL) if not content else (_MIDDLE if begun else _FIRST)
        file.write(_PIECE_HEADER.pack(zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece)
        begun = True
        if not content:
            return


def repair_parts(folder: Path) -> None:
    """Remove a record that a kill cut off from the parts of a run that were not sent, and parts without any record.

    `wandb sync` stops at such a part and sends none of the later ones. A part that has just been written is left alone.
    """
    for part in unsent_parts(folder):
        if time.time() - part.stat().st_mtime < SETTLE_SECONDS:
            continue
        with part.open("r+b") as file:
            length = max((end for end, _ in read_records(file)), default=0)
            if length:
                file.truncate(length)
        if not length:
            remove(part.parent)


def rewind_parts(folder: Path, step: int) -> int:
    """Remove the metrics of a step, and of all later ones, from the parts of a run that were not sent.

    A run that resumes at a checkpoint makes these steps again, and logs them again in its next part. Waits, for seconds, while
    W&B's service of a start that was killed may still write.

    Args:
        folder: W&B's folder of the run.
        step: optimizer steps that the checkpoint has.

    Returns:
        The last step whose metrics are left; 0 without any.
    """
    unsent, last = unsent_parts(folder), 0
    for part in list_parts(folder):
        kept, steps = [], [0]
        for content in settled_records(part):
            row = read_metrics(content)
            if row.get(STEP_METRIC, -1) < step or part not in unsent:
                kept.append(content)
                steps.append(row.get(STEP_METRIC, 0))
            else:
                steps.append(-1)
        last = max(last, *steps)
        if -1 in steps:
            with replaced_file(part) as staged, staged.open("wb") as file:
                for content in kept:
                    write_record(file, content)
    return last


def settled_records(part: Path) -> list[bytes]:
    """Return the records of a part, when the process that writes it has ended it or has been silent for a while."""
    while True:
        with part.open("rb") as file:
            records = [content for _, content in read_records(file)]
        silence = time.time() - part.stat().st_mtime
        if silence >= SETTLE_SECONDS or (records and Record.FromString(records[-1]).HasField("exit")):
            return records
        time.sleep(SETTLE_SECONDS - silence)


@contextmanager
def wandb_writes_to(folder: Path) -> Iterator[None]:
    """Let W&B's library keep its cache, its settings and the files of artifacts in a folder while the block runs."""
    former = {name: os.environ.get(name) for name in _PLACES}
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(dict.fromkeys(_PLACES, str(folder.resolve())))
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def part_arguments(run_id: str, name: str, project: str, entity: str | None) -> dict[str, Any]:
    """Return the arguments with which W&B's library writes another part of a tracked run, without its server."""
    import wandb

    # What is printed, and changes of the code, may quote items: `tracking.content` does not see them.
    settings = wandb.Settings(
        silent=True, console="off", save_code=False, disable_git=True, x_transaction_log_flush_interval=_FLUSH_SECONDS
    )
    # The server is asked for the run's last step when this part is sent, so that one run continues.
    identity = {"id": run_id, "name": name, "project": project, "entity": entity}
    return {**identity, "mode": "offline", "resume": "allow", "settings": settings}


def read_identity(part: Path) -> tuple[str | None, str | None, str] | None:
    """Return entity, project and id of the run of a part; ``None`` if it does not have them yet."""
    with part.open("rb") as file:
        for _, content in read_records(file):
            if (record := Record.FromString(content)).HasField("run"):
                return record.run.entity or None, record.run.project or None, record.run.run_id
    return None


def read_metrics(content: bytes) -> dict[str, Any]:
    """Return the metrics of a record, ``_step`` and :data:`STEP_METRIC` included; empty if it has none."""
    record = Record.FromString(content)
    return {_name(item): json.loads(item.value_json) for item in record.history.item}


def position(row: Mapping[str, Any]) -> int | None:
    """Return where in its run a row of metrics belongs: its optimizer step, or its number; ``None`` for another row."""
    found: int | None = row.get(STEP_METRIC, row.get(ROW_METRIC))
    return found


def _name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _top_name(item: Any) -> str:
    """Return the name as the server has it, to which a table is one value."""
    return str(item.key or item.nested_key[0])


@dataclass(frozen=True)
class Sent:
    """What W&B's server has of a run's metrics.

    Attributes:
        step: the last :func:`position`; 0 without any.
        names: names of the metrics there.
    """

    step: int = 0
    names: frozenset[str] = frozenset()

    def rest(self, content: bytes) -> bytes | None:
        """Return a record without the metrics that the server has; ``None`` if it has all of them."""
        record = Record.FromString(content)
        items = list(record.history.item)
        step = position({_name(item): json.loads(item.value_json) for item in items if _name(item) in _POSITIONS})
        if step is None or step > self.step:
            return content
        if step < self.step or {_top_name(item) for item in items} <= self.names:
            return None
        kept = [item for item in items if _top_name(item) not in self.names or _name(item) in (*_POSITIONS, "_step")]
        del record.history.item[:]
        record.history.item.extend(kept)
        rest: bytes = record.SerializeToString()
        return rest


class PartCopy:
    """A copy of a part without the metrics that the server has, which grows with the part.

    Args:
        part: the `.wandb` file.
        folder: folder for the copy, removed if it exists.
        sent: what the server has.
    """

    def __init__(self, part: Path, folder: Path, sent: Sent) -> None:
        remove(folder)
        folder.mkdir(parents=True)
        (folder / "files").symlink_to((part.parent / "files").resolve())
        self.path = folder / part.name
        self._part, self._sent, self._at = part, sent, 0
        self.advance()

    def advance(self) -> None:
        """Copy what was added to the part since the last call."""
        with self._part.open("rb") as source, self.path.open("ab") as target:
            source.seek(self._at)
            for self._at, content in read_records(source):
                if (rest := self._sent.rest(content)) is not None:
                    write_record(target, rest)
