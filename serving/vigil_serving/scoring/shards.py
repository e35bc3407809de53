"""Parts: one file of decisions for each chunk of rows, that appears in one step and is trusted only by its own hash."""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from vigil_data.errors import Failure
from vigil_serving.scoring.job_spec import Plan

_HASH = hashlib.sha256().digest_size


class Damaged(Exception):  # noqa: N818 (it ends nothing: the part is scored anew)
    """A part that cannot be trusted; the message says why."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one scoring in a folder, which several processes and machines may fill at the same time.

    A file is an Arrow stream and behind it the SHA-256 of plan, number and stream: a part that is cut off, altered, of another
    scoring or under another's number is found.

    Args:
        folder: on a file system that all of them share.
        plan: of the scoring.
    """

    folder: Path
    plan: Plan

    def file(self, number: int) -> Path:
        """Where the part lies, or will."""
        return self.folder / f"{number:08d}.part"

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part, or replace it by its equal; it is on the disk when this returns.

        Raises:
            Failure: if the disk does not take it.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        partial = self.folder / f".{number:08d}.{socket.gethostname()}.{uuid4().hex}.partial"
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.write(self._hash(number, content))
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self.file(number))
            sync(self.folder)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            reason = error.strerror or str(error)
            raise Failure(
                f"{self.file(number)}: cannot be written: {reason}; mend that and start the same command again; parts are kept"
            ) from None

    def read(self, number: int) -> pa.Table:
        """Read a part.

        Raises:
            Damaged: if it is not whole, or not this plan's.
        """
        try:
            content = self.file(number).read_bytes()
        except OSError as error:
            raise Damaged(f"cannot be read: {error.strerror}") from None
        stream, kept = memoryview(content)[:-_HASH], content[-_HASH:]
        if self._hash(number, stream) != kept:
            raise Damaged("it was altered or cut off, or belongs to another scoring")
        return pa.ipc.open_stream(pa.py_buffer(stream)).read_all()

    def is_whole(self, number: int) -> bool:
        """Whether the part is there and can be trusted."""
        try:
            self.read(number)
        except Damaged:
            return False
        return True

    def missing(self, say: Callable[[str], None]) -> Iterator[int]:
        """Parts that are yet to be scored; what is damaged is told, and is among them."""
        for number in range(self.plan.parts):
            if not self.file(number).exists():
                yield number
                continue
            try:
                self.read(number)
            except Damaged as reason:
                say(f"{self.file(number)}: {reason}; scored anew")
                yield number

    def _hash(self, number: int, stream: memoryview | pa.Buffer) -> bytes:
        hashed = hashlib.sha256(f"{self.plan.digest} {number}\n".encode())
        hashed.update(stream)
        return hashed.digest()


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk.

    Raises:
        OSError: if the disk does not take them.
    """
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
