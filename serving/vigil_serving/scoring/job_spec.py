"""Specification of a scoring job: everything that its shards depend on, so that shards of two jobs are never merged."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sha256_json, write_json
from vigil_serving.bundle.load import Bundle
from vigil_serving.scoring.output_schema import output_schema, schema_digest

FORMAT = 2
"""Format of jobs and shards; increased when either changes, or how items become decisions."""


class SelectedRows(NamedTuple):
    """A dataset at one version, and the numbers of the rows to score, in order."""

    dataset: Dataset
    numbers: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedRows:
    """Rows of a dataset that are scored, and how they are split into shards; jobs add what they are scored with.

    Attributes:
        dataset: absolute path of the dataset.
        version: version of the dataset.
        written: time of that version; a dataset that was deleted and created again starts at version 1 again.
        split: only rows of this split.
        where: only rows of this SQL condition.
        chunk: rows per shard.
        rows: number of rows.
        columns: digest of the output's columns and their types.
        format: see :data:`FORMAT`.
    """

    dataset: str
    version: int
    written: str
    split: str | None
    where: str | None
    chunk: int
    rows: int
    columns: str
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 of the specification."""
        return sha256_json(asdict(self))

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.chunk)

    def span(self, shard: int) -> slice:
        """Return the positions of a shard's rows among the rows to score."""
        return slice(shard * self.chunk, min((shard + 1) * self.chunk, self.rows))

    def size(self, shard: int) -> int:
        """Return the number of rows of a shard."""
        span = self.span(shard)
        return int(span.stop - span.start)

    def open(self) -> SelectedRows:
        """Return the rows to score."""
        dataset = Dataset(self.dataset, self.version)
        return SelectedRows(dataset, dataset.rows(self.split, self.where))

    def differences(self, kept: "ShardedRows") -> Iterator[str]:
        """Yield what another job has and this one has not, by the names of the command's options."""
        for field in fields(self):
            mine, other = getattr(self, field.name), getattr(kept, field.name)
            if mine != other:
                yield f"{field.name} {_shown(other)}, not {_shown(mine)}"

    def write(self, file: Path) -> None:
        """Write the specification as JSON.

        Raises:
            Failure: if it cannot be written.
        """
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a specification.

        Raises:
            UserError: if the file is damaged.
        """
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{file}: damaged, so its job is unknown; discard its shards with --restart") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec(ShardedRows):
    """What is scored, and with which bundle.

    Attributes:
        bundle: digest of the bundle.
        variant: variant of the encoders.
        policy_text: digest of the policy texts that a guard reads in place of the bundle's.
    """

    bundle: str
    variant: str
    policy_text: str | None = None


def select_rows(dataset_path: StrPath, split: str | None, where: str | None) -> tuple[SelectedRows, dict[str, Any]]:
    """Select rows of the latest version of a dataset.

    Returns:
        The rows, and the attributes of :class:`ShardedRows` that describe them.

    Raises:
        UserError: if there is no such dataset or split, or the condition is invalid.
    """
    dataset = Dataset(Path(dataset_path).resolve())
    rows = SelectedRows(dataset, dataset.rows(split, where))
    written = next(v["timestamp"].isoformat() for v in dataset.versions() if v["version"] == dataset.version)
    described = {"dataset": str(dataset.path), "version": dataset.version, "written": written, "split": split, "where": where}
    return rows, described | {"rows": len(rows.numbers)}


def make_job_spec(
    bundle: Bundle,
    dataset_path: StrPath,
    *,
    split: str | None,
    where: str | None,
    variant: str,
    chunk: int,
    policy_text: str | None = None,
) -> tuple[JobSpec, SelectedRows]:
    """Specify a job on the latest version of a dataset.

    Returns:
        The specification, and the rows to score.

    Raises:
        UserError: if there is no such dataset or split, or the condition is invalid.
    """
    rows, described = select_rows(dataset_path, split, where)
    columns = schema_digest(output_schema(bundle))
    spec = JobSpec(bundle=bundle.digest, variant=variant, policy_text=policy_text, chunk=chunk, columns=columns, **described)
    return spec, rows


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if len(text) == 64 else text
