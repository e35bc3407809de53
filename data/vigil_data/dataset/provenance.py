"""Provenance of targets: who or what gave each one, when, and under which policy version.

A target whose row was imported with it has none of its own: it is from the row's ``source``. Whatever sets a target later (merged
reviews, a join) writes ``provenance:LABEL``, a struct of ``source``, ``at`` and ``policy``.

Example:
    >>> [(p.label, p.value, p.source, p.policy) for p in provenance_of("datasets/posts", "p1")]
    [('scam', 1.0, 'davidson', None), ('spam', 0.0, 'reviews: ann, ben', 'v3')]
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import lance

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.table_schema import PROVENANCE, TARGET, sql_literal
from vigil_data.errors import UserError, one_line
from vigil_data.filesystem import StrPath


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who or what gave a target.

    Attributes:
        label: the label.
        value: the target.
        source: a data set, reviewers (``reviews: ann, ben``), or the command that imported the row.
        at: when it was given; for an imported target, when the oldest version that still exists and has the row was written.
        policy: the policy version under which it was given, if known.
    """

    label: str
    value: float
    source: str
    at: datetime | None
    policy: str | None


def provenance_of(path: StrPath, id_: str) -> list[Provenance]:
    """Return the provenance of an item's known targets, in the order of the dataset's labels.

    Raises:
        UserError: if there is no such item.
    """
    dataset = Dataset(path)
    row = dataset.rows(where=_equals(id_))
    if not len(row):
        raise UserError(one_line(f"dataset {path} has no item {id_}"))
    names = [name for name in dataset.schema.names if name.startswith((TARGET, PROVENANCE))]
    values = dataset.table(["source", *names], row).to_pylist()[0]
    first = _first_version(path, id_)
    imported = values["source"] or (first.change.command if first and first.change else "unknown")
    found = []
    for label in dataset.labels:
        if (value := values[TARGET + label]) is None:
            continue
        given = values.get(PROVENANCE + label) or {"source": imported, "at": first and first.when, "policy": None}
        found.append(Provenance(label, value, given["source"], given["at"], given["policy"]))
    return found


def _equals(id_: str) -> str:
    return f"id = {sql_literal(id_)}"


def _first_version(path: StrPath, id_: str) -> history.Entry | None:
    """Return the oldest readable version with the item, by bisection: an item that was added stays until it is erased."""
    table = str(Path(path) / "items.lance")
    entries = [entry for entry in history.read(path) if entry.readable]
    low, high = 0, len(entries) - 1
    while low < high:
        middle = (low + high) // 2
        if lance.dataset(table, version=entries[middle].version).count_rows(filter=_equals(id_)):
            high = middle
        else:
            low = middle + 1
    return entries[low] if entries else None
