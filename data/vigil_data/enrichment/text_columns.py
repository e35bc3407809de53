"""Columns of items that get more texts: text, roles, times, number of characters and digests change together.

What is stored is what an import of the same item with these texts stores.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vigil_data.dataset.leaks import digests_with_texts
from vigil_data.dataset.table_schema import DIGESTS, FACTS, PAYLOADS, SEGMENTS, storable
from vigil_data.items import BODY, Item, Role, Time

SCHEMA = pa.schema(
    [
        PAYLOADS.field("text"),
        *(SEGMENTS.field(name) for name in ("text_roles", "text_starts", "text_ends")),
        FACTS.field("characters"),
        DIGESTS.field("digests"),
    ]
)
"""The columns that depend on an item's texts."""


def with_texts(
    stored: pa.Table,
    texts: Sequence[Sequence[str]],
    times: Sequence[Sequence[Time]],
    role: Role,
    *,
    replaces: Sequence[bool],
    context_media: Mapping[int, Sequence[int]],
) -> list[pa.Array]:
    """Return the columns of :data:`SCHEMA` of items with more texts.

    Args:
        stored: those of the columns that the dataset has.
        texts: the new texts of each row.
        times: their times; empty for a row whose texts have none.
        role: their role.
        replaces: whether the texts of this role that a row has are removed.
        context_media: row to the digests of its images and audio files that are context.
    """
    rows = stored.to_pylist()
    changed = [
        _changed(*of, role, context_media=context_media.get(number, ()))
        for number, of in enumerate(zip(rows, texts, times, replaces, strict=True))
    ]
    return [pa.array([row[field.name] for row in changed], field.type) for field in SCHEMA]


def _changed(
    row: dict[str, Any], texts: Sequence[str], times: Sequence[Time], replaces: bool, role: Role, *, context_media: Sequence[int]
) -> dict[str, Any]:
    before = {name: row.get(name) for name in SCHEMA.names}
    starts, ends = row.get("text_starts"), row.get("text_ends")
    old_times = [None if start is None else (start, end) for start, end in zip(starts or (), ends or (), strict=True)]
    item = Item("", tuple(row["text"] or ()), roles={"text": tuple(row.get("text_roles") or ())}, times=tuple(old_times))
    kept = [index for index in range(len(item.text)) if not (replaces and item.role("text", index) == role)]
    if not texts and len(kept) == len(item.text):
        return before
    if len(kept) < len(item.text):
        roles = tuple(item.role("text", index) for index in kept)
        kept_times = tuple(item.time("text", index) for index in kept)
        item = Item(
            "",
            tuple(item.text[index] for index in kept),
            roles={"text": roles} if set(roles) - {BODY} else {},
            times=kept_times if any(kept_times) else (),
        )
    item = item.with_texts([storable(text) for text in texts], role, times)
    return {
        "text": list(item.text),
        "text_roles": list(item.roles["text"]) if item.roles.get("text") else None,
        "text_starts": [time and time[0] for time in item.times] or None,
        "text_ends": [time and time[1] for time in item.times] or None,
        "characters": sum(map(len, item.text)),
        "digests": digests_with_texts(row["digests"] or (), item, context_media),
    }
