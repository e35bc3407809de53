"""What a scoring is: everything that its parts depend on, in one file, so that parts of two scorings are never joined."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_serving.bundle.load import Bundle
from vigil_serving.scoring.output_schema import digest_of, schema_of

FORMAT = 1
"""Of plan and parts; a change of either, or of how items become decisions, raises it."""


class Rows(NamedTuple):
    """A dataset at one version, and the numbers of its rows that are scored, in order."""

    dataset: Dataset
    numbers: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is scored, with what, and how its rows are cut into parts.

    Attributes:
        bundle: digest of the bundle.
        dataset: the dataset's absolute path.
        version: its version.
        written: when that version was written: a dataset that was deleted and made anew begins with version 1 again.
        split: only this split.
        where: only rows of this SQL condition.
        variant: of the encoders.
        chunk: rows of a part.
        rows: how many rows there are in all.
        columns: digest of the table's columns and their types.
        format: see :data:`FORMAT`.
    """

    bundle: str
    dataset: str
    version: int
    written: str
    split: str | None
    where: str | None
    variant: str
    chunk: int
    rows: int
    columns: str
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.rows // self.chunk)

    def span(self, number: int) -> slice:
        """The places, among the rows to be scored, of a part."""
        return slice(number * self.chunk, min((number + 1) * self.chunk, self.rows))

    def size(self, number: int) -> int:
        """Rows of a part."""
        span = self.span(number)
        return int(span.stop - span.start)

    def open(self) -> Rows:
        """The rows to be scored."""
        dataset = Dataset(self.dataset, self.version)
        return Rows(dataset, dataset.rows(self.split, self.where))

    def differences(self, kept: "Plan") -> Iterator[str]:
        """What another plan has and this one has not, in the words of who asked for them."""
        for field in fields(self):
            mine, other = getattr(self, field.name), getattr(kept, field.name)
            if mine != other:
                yield f"{field.name} {_shown(other)}, not {_shown(mine)}"

    def write(self, file: Path) -> None:
        """Write as JSON."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(file: Path) -> "Plan":
        """Read what :meth:`write` wrote.

        Raises:
            UserError: if it is something else.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            plan = Plan(**content)
        except (OSError, ValueError, TypeError):
            raise UserError(f"{file}: damaged, so nobody knows what was scored; --restart throws its parts away") from None
        return plan


def plan_of(
    bundle: Bundle, dataset_path: Path, *, split: str | None, where: str | None, variant: str, chunk: int
) -> tuple[Plan, Rows]:
    """Plan a scoring of the dataset's newest version.

    Returns:
        The plan, and the rows to be scored.

    Raises:
        UserError: if there is no such dataset or split, or the condition cannot be read.
    """
    dataset = Dataset(dataset_path.resolve())
    rows = Rows(dataset, dataset.rows(split, where))
    written = next(v["timestamp"].isoformat() for v in dataset.versions() if v["version"] == dataset.version)
    plan = Plan(
        bundle=bundle.digest,
        dataset=str(dataset.path),
        version=dataset.version,
        written=written,
        split=split,
        where=where,
        variant=variant,
        chunk=chunk,
        rows=len(rows.numbers),
        columns=digest_of(schema_of(bundle)),
    )
    return plan, rows


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if len(text) == 64 else text
