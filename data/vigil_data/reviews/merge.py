"""Merging of reviewers' decisions into the targets of a dataset.

Example:
    >>> merged = merge_labels("datasets/posts", "reviews.csv", rules=("latest-policy", "majority"), on_conflict="replace")
    >>> [(cell.id, cell.label, cell.before, cell.after) for cell in merged.cells if cell.action == "replaced"]
    [('p7', 'spam', 1.0, 0.0)]
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.history import Change
from vigil_data.dataset.revision import write_columns
from vigil_data.dataset.table_schema import PROVENANCE, PROVENANCE_TYPE, TARGET, is_label
from vigil_data.dataset.writer_lock import writing
from vigil_data.errors import UserError, capped, one_line
from vigil_data.filesystem import StrPath, sha256_file
from vigil_data.lineage import Input
from vigil_data.reviews.decisions import Decision, read_decisions, store_decisions, stored_decisions
from vigil_data.reviews.rules import DEFAULT_RULES, Rule, decide

OnConflict = Literal["fail", "keep", "replace"]
"""What to do with a known target that reviewers contradict: write nothing, keep it, or replace it."""

Action = Literal["set", "updated", "replaced", "kept"]
"""A target was unknown, was from reviews before, was from elsewhere and is replaced, or is kept although reviewers contradict."""

_SOURCE = "reviews: "


@dataclass(frozen=True, slots=True)
class Cell:
    """A target that reviewers decided otherwise than the dataset has it.

    Attributes:
        id: the item.
        label: the label.
        before: the target in the dataset; ``None`` if unknown.
        after: the reviewers' target.
        action: what was done.
        reviewers: who was counted, sorted.
        policy: the latest policy version under which they decided; empty if unknown.
        before_source: who or what gave the target in the dataset, if that is known.
    """

    id: str
    label: str
    before: float | None
    after: float
    action: Action
    reviewers: Sequence[str]
    policy: str
    before_source: str | None


@dataclass(frozen=True, slots=True)
class Merged:
    """Result of :func:`merge_labels`.

    Attributes:
        version: the dataset's newest version.
        stored: number of decisions that are kept from now on.
        repeated: number of decisions of the file that were kept already.
        cells: targets that differ from the dataset's, in the order of the decisions.
        same: number of targets that are as the dataset has them.
        undecided: cells (id and label) without votes, or with a tie; their targets are unchanged.
        absent: number of kept decisions about items or labels that the dataset no longer has.
    """

    version: int
    stored: int = 0
    repeated: int = 0
    cells: Sequence[Cell] = ()
    same: int = 0
    undecided: Sequence[tuple[str, str]] = ()
    absent: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of :attr:`cells` by action."""
        return dict(Counter(cell.action for cell in self.cells))


def merge_labels(
    path: StrPath,
    file: StrPath | None = None,
    *,
    rules: Sequence[Rule] = DEFAULT_RULES,
    soft: bool = False,
    on_conflict: OnConflict = "fail",
    new_labels: Sequence[str] = (),
    reason: str = "",
) -> Merged:
    """Make targets of reviewers' decisions, as one version, and keep the decisions.

    The decisions of the file count together with those that the dataset keeps about the same items and labels.

    Args:
        path: the dataset's folder.
        file: decisions, see :func:`.read_decisions` (default: merge all that are kept again, with these rules).
        rules: see :func:`.check_rules`.
        soft: targets are means of votes; else 0 or 1.
        on_conflict: what to do with known targets that are not from reviews and that reviewers contradict.
        new_labels: labels that the dataset lacks and may get.
        reason: why, for the history.

    Raises:
        UserError: for mistakes in the file, and for conflicts if they fail; nothing is written then.
    """
    folder = Path(path)
    if wrong := [label for label in new_labels if not is_label(label)]:
        raise UserError(f"--new-label {wrong[0]!r}: must be lower-case letters, digits and _, starting with a letter")
    Dataset(folder)  # there is one: a lock would make the folder
    with writing(folder):
        dataset = Dataset(folder)
        ids: pa.ChunkedArray = dataset.table(["id"])["id"]
        labels = list(dict.fromkeys([*dataset.labels, *new_labels]))
        kept = stored_decisions(folder)
        by_key = {decision.key: decision for decision in kept}
        known_ids = set(ids.to_pylist())
        given = kept if file is None else read_decisions(Path(file), known_ids, labels, by_key)
        present = [of for of in given if of.id in known_ids and of.label in labels]
        new = [] if file is None else [of for of in given if of.key not in by_key]
        wanted = dict.fromkeys((of.id, of.label) for of in present)
        groups: dict[tuple[str, str], list[Decision]] = {cell: [] for cell in wanted}
        for of in (*kept, *new):
            if (cell := (of.id, of.label)) in groups:
                groups[cell].append(of)
        current = _Current(dataset, ids, list(dict.fromkeys(of.id for of in present)), labels)
        plan = _plan(groups, current, rules, soft=soft, on_conflict=on_conflict)
        conflicts = [cell for cell in plan.cells if cell.action == "kept"]
        if on_conflict == "fail" and conflicts:
            raise UserError(*capped([_conflict(cell) for cell in conflicts]), _HINT)
        store_decisions(folder, new, (current.target(of.id, of.label) for of in new))
        change = Change("merge labels", reason).with_counts(decisions=len(new), **plan.counts)
        reviews = [] if file is None else [_reviews(Path(file), len(new))]
        revised = current.revised(plan.cells, plan.given)
        version = write_columns(folder, revised, change, base=dataset.version, inputs=reviews)
        repeated = 0 if file is None else len(given) - len(new)
        return Merged(version, len(new), repeated, plan.cells, plan.same, plan.undecided, len(given) - len(present))


def _reviews(file: Path, decisions: int) -> Input:
    return Input("reviews", sha256_file(file), "reviews", file.name, str(file.resolve()), {"decisions": decisions})


_HINT = "nothing was written; use --on-conflict keep or --on-conflict replace"


def _conflict(cell: Cell) -> str:
    source = f" (from {cell.before_source})" if cell.before_source else ""
    return one_line(f"{cell.id}: {cell.label} is {cell.before:g}{source}, but {cell.after:g} by {', '.join(cell.reviewers)}")


class _Current:
    """Targets of some items and their provenance, as the dataset has them."""

    def __init__(self, dataset: Dataset, ids: pa.ChunkedArray, wanted: Sequence[str], labels: Sequence[str]) -> None:
        rows = np.asarray(pc.index_in(pa.array(wanted, pa.string()), ids.combine_chunks()).to_numpy(), np.int64)
        self._labels = labels
        names = [f"{prefix}{label}" for label in labels for prefix in (TARGET, PROVENANCE)]
        table = dataset.table(["source", *(name for name in names if name in dataset.schema.names)], rows)
        self._columns: dict[str, list[Any]] = {name: [None] * len(wanted) for name in names}
        self._columns |= {name: table[name].to_pylist() for name in table.column_names}
        self._row = {id_: row for row, id_ in enumerate(wanted)}

    def target(self, id_: str, label: str) -> float | None:
        value: float | None = self._columns[TARGET + label][self._row[id_]]
        return value

    def source(self, id_: str, label: str) -> str | None:
        row = self._row[id_]
        source: str | None = (self._columns[PROVENANCE + label][row] or {}).get("source") or self._columns["source"][row]
        return source

    def is_reviewed(self, id_: str, label: str) -> bool:
        given = self._columns[PROVENANCE + label][self._row[id_]]
        return given is not None and str(given["source"]).startswith(_SOURCE)

    def revised(self, cells: Sequence[Cell], given: Mapping[tuple[str, str], datetime]) -> pa.Table:
        """Return the rows with a changed target, with all labels that are changed in some row."""
        written = [cell for cell in cells if cell.action != "kept"]
        labels = [label for label in self._labels if any(cell.label == label for cell in written)]
        for cell in written:
            row = self._row[cell.id]
            source = {
                "source": _SOURCE + ", ".join(cell.reviewers),
                "at": given[cell.id, cell.label],
                "policy": cell.policy or None,
            }
            self._columns[TARGET + cell.label][row] = cell.after
            self._columns[PROVENANCE + cell.label][row] = source
        ids = list(dict.fromkeys(cell.id for cell in written))
        arrays = {"id": pa.array(ids, pa.string())}
        for label in labels:
            for name, kind in ((TARGET + label, pa.float32()), (PROVENANCE + label, PROVENANCE_TYPE)):
                arrays[name] = pa.array([self._columns[name][self._row[id_]] for id_ in ids], kind)
        return pa.table(arrays)


@dataclass(slots=True)
class _Plan:
    """What a merge changes; ``given`` has the time of the latest decision of each cell that was counted."""

    cells: list[Cell] = field(default_factory=list)
    given: dict[tuple[str, str], datetime] = field(default_factory=dict)
    undecided: list[tuple[str, str]] = field(default_factory=list)
    same: int = 0

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(cell.action for cell in self.cells))


def _plan(
    groups: Mapping[tuple[str, str], Sequence[Decision]],
    current: _Current,
    rules: Sequence[Rule],
    *,
    soft: bool,
    on_conflict: OnConflict,
) -> _Plan:
    plan = _Plan()
    for (id_, label), decisions in groups.items():
        target, votes = decide(decisions, rules, soft=soft)
        before = current.target(id_, label)
        if target is None:
            plan.undecided.append((id_, label))
            continue
        target = float(np.float32(target))
        if before == target:
            plan.same += 1
            continue
        source = current.source(id_, label)
        if before is None:
            action: Action = "set"
        elif current.is_reviewed(id_, label):
            action = "updated"
        else:
            action = "replaced" if on_conflict == "replace" else "kept"
        latest = max(votes, key=lambda of: of.time)
        reviewers = sorted({of.reviewer for of in votes})
        plan.given[id_, label] = latest.time
        plan.cells.append(
            Cell(id_, label, before, target, action, reviewers, latest.policy_version, source if before is not None else None)
        )
    return plan
