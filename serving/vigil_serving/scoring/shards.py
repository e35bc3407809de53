"""Shards: one file of decisions for each chunk of rows, written atomically and verified by a hash of its own."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from vigil_data.errors import Failure
from vigil_data.filesystem import write_failure, write_file
from vigil_serving.scoring.job_spec import ShardedRows

_log = logging.getLogger("vigil.score")
_HASH_BYTES = hashlib.sha256().digest_size
Job = TypeVar("Job", bound=ShardedRows)


class DamagedShard(Exception):  # noqa: N818 (not a failure: the shard is scored again)
    """A shard that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Shards(Generic[Job]):
    """Shards of one job in a folder, which several processes and machines may fill at the same time.

    A file is an Arrow stream followed by the SHA-256 of job, number and stream, so that an incomplete or altered shard, or one of
    another job or number, is detected.

    Args:
        folder: a folder that all processes share.
        job: the job.
    """

    folder: Path
    job: Job

    def file(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"{number:08d}.shard"

    def write(self, number: int, table: pa.Table) -> None:
        """Write a shard atomically and durably; an existing one is replaced.

        Raises:
            Failure: if it cannot be written.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        stream = sink.getvalue()
        with resume_hint(self.file(number)):
            write_file(self.file(number), b"".join([stream, self._hash(number, stream)]))

    def read(self, number: int) -> pa.Table:
        """Read a shard.

        Raises:
            DamagedShard: if it is incomplete, altered, or not of this job and number.
        """
        file = self.file(number)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DamagedShard(f"{file}: cannot be read: {error.strerror}") from None
        stream, digest = memoryview(content)[:-_HASH_BYTES], content[-_HASH_BYTES:]
        if self._hash(number, stream) != digest:
            raise DamagedShard(f"{file}: altered, cut off, or of another job")
        return pa.ipc.open_stream(pa.py_buffer(stream)).read_all()

    def is_complete(self, number: int) -> bool:
        """Whether a shard exists and can be used."""
        try:
            self.read(number)
        except DamagedShard:
            return False
        return True

    def missing(self) -> Iterator[int]:
        """Yield the shards to score; damaged ones are logged and among them."""
        for number in range(self.job.shards):
            if not self.file(number).exists():
                yield number
                continue
            try:
                self.read(number)
            except DamagedShard as error:
                _log.warning("%s; scored again", error)
                yield number

    def _hash(self, number: int, stream: memoryview | pa.Buffer) -> bytes:
        hashed = hashlib.sha256(f"{self.job.digest} {number}\n".encode())
        hashed.update(stream)
        return hashed.digest()


@contextmanager
def resume_hint(path: Path) -> Iterator[None]:
    """Turn errors while writing ``path`` into one line that says how to resume.

    Raises:
        Failure: if the block could not write.
    """
    try:
        yield
    except (Failure, RuntimeError, ValueError) as error:  # RuntimeError and ValueError are raised by Lance
        failure = error if isinstance(error, Failure) else write_failure(path, OSError(str(error)))
        raise Failure(f"{str(failure).splitlines()[0]}; then run the same command again: finished shards are kept") from None
