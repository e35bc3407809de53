"""Who changed a dataset, when, why and by which command: one :class:`Change` for each version.

A change is stored in the properties of its version's one commit, so that a version has it or does not exist. Before old versions
are deleted, :func:`keep` copies their changes to ``DATASET/history.jsonl``.

Example:
    >>> write("datasets/posts", items, change=Change("import", reason="reviews of May"))
    >>> [(entry.version, entry.change.operation, entry.change.who) for entry in read("datasets/posts")]
    [(1, 'import', 'ann@host')]
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, write_file
from vigil_data.lineage.invocation import command_line, current_user

FILE = "history.jsonl"
"""Changes of versions that no longer exist, in the dataset's folder."""

_PROPERTY = "vigil.change"


@dataclass(frozen=True, slots=True)
class Change:
    """What made a version of a dataset.

    Attributes:
        operation: ``import``, ``enrich``, ``split``, …
        reason: why, in the words of who did it.
        counts: what was changed, such as ``{"added": 120}``; numbers of rows unless the name says otherwise.
        command: the command line, without secrets.
        who: ``user@host``, or ``VIGIL_USER``.
        when: time of the change, UTC.
    """

    operation: str
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    command: str = field(default_factory=command_line)
    who: str = field(default_factory=current_user)
    when: datetime = field(default_factory=lambda: datetime.now(UTC))

    def with_counts(self, **counts: int) -> "Change":
        """Return the change with more counts; those that are 0 are left out."""
        return replace(self, counts={**self.counts, **{name: count for name, count in counts.items() if count}})

    def to_json(self) -> dict[str, Any]:
        """Return the change as a JSON value."""
        return {**asdict(self), "counts": dict(self.counts), "when": self.when.astimezone(UTC).isoformat()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Change":
        """Return the change that :meth:`to_json` describes.

        Raises:
            ValueError: if it is none.
        """
        try:
            texts = {name: value[name] for name in ("operation", "reason", "command", "who")}
            counts = {str(name): int(count) for name, count in value["counts"].items()}
            when = datetime.fromisoformat(value["when"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a change: {error}") from None
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("not a change: a text is missing")
        return cls(**texts, counts=counts, when=when)

    def to_properties(self) -> dict[str, str]:
        """Return the properties of a Lance transaction that hold the change."""
        return {_PROPERTY: json.dumps(self.to_json(), ensure_ascii=False)}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str] | None) -> "Change | None":
        """Return the change in a transaction's properties; ``None`` if another program made the version."""
        try:
            return cls.from_json(json.loads((properties or {})[_PROPERTY]))
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Entry:
    """A version in the history of a dataset.

    Attributes:
        version: its number.
        change: what made it; ``None`` if another program did.
        rows: number of items.
        when: time of its commit, UTC.
        readable: whether the version still exists; older ones may have been deleted by an erasure.
    """

    version: int
    change: Change | None
    rows: int
    when: datetime
    readable: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a JSON value."""
        change = self.change and self.change.to_json()
        return {**asdict(self), "change": change, "when": self.when.isoformat()}


def read(path: StrPath) -> list[Entry]:
    """Return the history of a dataset, oldest version first.

    Raises:
        UserError: if there is no dataset, or its ``history.jsonl`` is damaged.
    """
    table = Path(path) / "items.lance"
    if not table.is_dir():
        raise UserError(f"{path} is not a dataset (it has no items.lance)")
    dataset = lance.dataset(str(table))
    entries = []
    for stored in dataset.versions():
        change = Change.from_properties(properties_of(dataset, stored["version"]))
        rows = int(stored["metadata"]["total_rows"])
        entries.append(Entry(stored["version"], change, rows, _utc(stored["timestamp"])))
    present = {entry.version for entry in entries}
    return sorted([*(e for e in _kept(Path(path) / FILE) if e.version not in present), *entries], key=lambda e: e.version)


def properties_of(dataset: lance.LanceDataset, version: int) -> Mapping[str, str] | None:
    """Return the properties of the transaction that made a version; ``None`` if it has none."""
    try:
        transaction = dataset.read_transaction(version)
    except TypeError:  # pylance 14 cannot describe a compaction of an indexed table
        return None
    return transaction.transaction_properties if transaction else None


def _utc(when: Any) -> datetime:
    moment: datetime = when  # Lance gives local times without a zone
    return moment.astimezone(UTC)


def keep(path: StrPath) -> None:
    """Copy the changes of all versions to ``history.jsonl``, so that the history outlives versions that will be deleted.

    Raises:
        Failure: if the file cannot be written.
    """
    values = [{name: of for name, of in entry.to_json().items() if name != "readable"} for entry in read(path)]
    write_file(Path(path) / FILE, "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values))


def _kept(file: Path) -> list[Entry]:
    if not file.is_file():
        return []
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            value = json.loads(line)
            change = value["change"] and Change.from_json(value["change"])
            when = datetime.fromisoformat(value["when"])
            entries.append(Entry(int(value["version"]), change, int(value["rows"]), when, readable=False))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{file}:{number}: not an entry of a dataset's history; restore the file from a backup") from None
    return entries
