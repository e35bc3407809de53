"""What other items have of an erased item: its texts in their context, and its id in columns that refer to it.

A reply that was imported with its thread holds the texts of the messages before it. They are content of those messages, so they
leave with them; the reply stays. Rows are rewritten as a whole, so that what they held before is in no file afterwards.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.erasure.ledger import Ledger
from vigil_data.dataset.erasure.selection import ITEMS, Found
from vigil_data.dataset.ingest import prepare_all, tables
from vigil_data.dataset.table_schema import sql_literal
from vigil_data.items import BODY, Item, Modality, Role

REFERENCES = ("parent_id", "thread", "matched_id")
"""Columns that hold ids of other items."""

MIN_CHARACTERS = 12
"""Shorter texts say nothing about who wrote them, and the context of unrelated items has them, too."""

_BATCH_ROWS = 256
_CHANGED = ("text", "text_roles", "text_starts", "text_ends", "characters", "digests")


def quotable_texts(folder: Path, items: Sequence[Found], ledger: Ledger) -> list[str]:
    """Return the hashes of the items' own texts; none if no item of the dataset has a context."""
    if "text_roles" not in Dataset(folder).schema.names:
        return []
    hashes = set()
    for version in {item.last for item in items if item.first}:
        dataset = Dataset(folder, version)
        ids = pa.array([item.id for item in items if item.last == version], pa.string())
        rows = np.flatnonzero(pc.is_in(dataset.table(["id"])["id"], ids).to_numpy())
        for start in range(0, len(rows), _BATCH_ROWS):
            for item in dataset.take(rows[start : start + _BATCH_ROWS], ("text",)):
                own = (text for n, text in enumerate(item.text) if item.role("text", n) != "context")
                hashes |= {ledger.hash_text(text) for text in own if len(text) >= MIN_CHARACTERS}
    return sorted(hashes)


def remove_quotations(folder: Path, hashes: Collection[str], erased: Collection[str]) -> int:
    """Remove texts from the context of items that stay.

    Args:
        folder: the dataset's folder.
        hashes: from :func:`quotable_texts`.
        erased: ids of the items that are erased.

    Returns:
        The number of items that were changed.
    """
    if not hashes:
        return 0
    ledger, dataset, changed = Ledger(folder), Dataset(folder), 0
    rows = dataset.rows(where="array_has(text_roles, 'context')")
    for start in range(0, len(rows), _BATCH_ROWS):
        batch = rows[start : start + _BATCH_ROWS]
        shortened = [_without(item, hashes, ledger) for item in dataset.take(batch, ("text",))]
        quoting = batch[[item is not None and item.id not in erased for item in shortened]]
        if len(quoting):
            items = [item for item in (_without(item, hashes, ledger) for item in dataset.take(quoting)) if item is not None]
            changed += len(items)
            stored = dataset.table(dataset.schema.names, quoting)
            lance.dataset(str(folder / ITEMS)).merge_insert("id").when_matched_update_all().execute(_with_texts(stored, items))
    return changed


def replace_references(folder: Path, erased: Collection[str]) -> int:
    """Replace ids of erased items in the columns of :data:`REFERENCES` by their hash, which keeps threads together.

    Returns:
        The number of values that were replaced.
    """
    ledger, replaced = Ledger(folder), 0
    ids = pa.array(sorted(erased), pa.string())
    for name in REFERENCES:
        table = lance.dataset(str(folder / ITEMS))
        if name not in table.schema.names or table.schema.field(name).type != pa.string():
            continue
        values = table.to_table(columns=[name])[name].unique()
        for id_ in values.filter(pc.is_in(values, ids)).to_pylist():
            pseudonym = sql_literal(f"erased-{ledger.hash_id(id_)[:16]}")
            done = lance.dataset(str(folder / ITEMS)).update({name: pseudonym}, where=f"{name} = {sql_literal(id_)}")
            replaced += int(done["num_rows_updated"])
    return replaced


def _without(item: Item, hashes: Collection[str], ledger: Ledger) -> Item | None:
    """Return the item without the texts of its context that have one of the hashes; ``None`` if there are none."""
    kept = [n for n, text in enumerate(item.text) if item.role("text", n) != "context" or ledger.hash_text(text) not in hashes]
    if len(kept) == len(item.text):
        return None
    roles = tuple(item.role("text", n) for n in kept)
    times = tuple(item.time("text", n) for n in kept)
    others: dict[Modality, tuple[Role, ...]] = {modality: of for modality, of in item.roles.items() if modality != "text"}
    return replace(
        item,
        text=tuple(item.text[n] for n in kept),
        roles={**others, "text": roles} if set(roles) - {BODY} else others,
        times=times if any(times) else (),
    )


def _with_texts(stored: pa.Table, items: Sequence[Item]) -> pa.Table:
    """Return stored rows with the texts of items, and all that depends on them, as an import stores it."""
    made = pa.concat_tables(tables(prepare_all(items), [], []), promote_options="default")
    for name in (name for name in _CHANGED if name in stored.column_names):
        field = stored.schema.field(name)
        column = made[name] if name in made.column_names else pa.nulls(stored.num_rows, field.type)
        stored = stored.set_column(stored.column_names.index(name), field, column)
    return stored
