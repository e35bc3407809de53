"""The quarantine: undecodable items, each listed once in a file, up to a limit."""

import json
from collections.abc import Iterable
from pathlib import Path

from vigil_data.filesystem import write_file
from vigil_data.loading.packing import Refusal
from vigil_training.trainer.errors import TrainingFailure


class Quarantine:
    """Undecodable items of a run.

    Args:
        path: JSON lines, one for each item; items that an interrupted run left there still count.
        rows: items that the run reads.
        limit: largest share of them that may be undecodable.
        writes: whether this process writes the file; all processes count.
    """

    def __init__(self, path: Path, rows: int, limit: float, writes: bool = True) -> None:
        self._path = path
        self._rows = rows
        self._limit = limit
        self._writes = writes
        self._ids = set(self._read())

    def __len__(self) -> int:
        """Return the number of undecodable items so far."""
        return len(self._ids)

    def add(self, refusals: Iterable[Refusal]) -> None:
        """Add undecodable items; those that are listed already are ignored.

        Raises:
            TrainingFailure: if more than the limit are undecodable by now.
        """
        new = [r for r in {r.id: r for r in refusals}.values() if r.id not in self._ids]
        if not new:
            return
        self._ids.update(r.id for r in new)
        if self._writes:
            lines = (json.dumps({"id": r.id, "modality": r.modality, "index": r.index, "reason": r.reason}) for r in new)
            with self._path.open("a") as file:
                file.writelines(line + "\n" for line in lines)
        if len(self._ids) > self._limit * self._rows:
            raise TrainingFailure(
                f"{len(self._ids)} of {self._rows} items cannot be decoded, more than data.quarantine_limit {self._limit:g}; "
                f"the last is item {new[-1].id}, {new[-1].modality} {new[-1].index}: {new[-1].reason}; {self._path} lists all"
            )

    def _read(self) -> list[str]:
        """Read the ids of the file, without a last line that a kill cut off."""
        text = self._path.read_text() if self._path.is_file() else ""
        complete = text[: text.rfind("\n") + 1]
        if self._writes and complete != text:
            write_file(self._path, complete)
        return [json.loads(line)["id"] for line in complete.splitlines()]
