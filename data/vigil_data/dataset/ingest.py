"""Validation of items and their conversion to tables with one schema."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import is_not
from typing import Literal, NamedTuple

import pyarrow as pa

from vigil_data.dataset.id_set import IdSet
from vigil_data.dataset.leaks import digests_of
from vigil_data.dataset.table_schema import (
    COLUMNS,
    DIGESTS,
    FACTS,
    ITEMS,
    PAYLOADS,
    SAMPLING,
    SEGMENTS,
    TARGET,
    is_column,
    is_label,
    storable,
)
from vigil_data.errors import UserError, capped
from vigil_data.items import MODALITIES, SAMPLING_COLUMNS, Item, sampling_value
from vigil_data.loading.packing import Refusal
from vigil_data.media_files import read_item
from vigil_data.parallel.ordered_map import ordered_map
from vigil_data.parallel.ray_cluster import RayCluster
from vigil_data.quality.origin import ROW, Refused

_CHUNK_ROWS, _CHUNK_BYTES = 4096, 64 * 2**20

BadRows = Literal["fail", "quarantine"]
"""What an import does with rows that are wrong themselves: fail with all their errors, or put them into quarantine."""

Screening = Callable[[Item], tuple[Item | Refusal, str]]
"""Returns an item, changed or refused, and why; with the empty text, the item as it was given."""

FILES_AT_ONCE, ROWS_AT_ONCE = 32, 512
"""Media files and rows of a task on a cluster."""


class Prepared(NamedTuple):
    """What an import finds out about an item by itself.

    Attributes:
        item: the item with its media, or the refusal that it is.
        facts: its size, in the order of :data:`vigil_data.dataset.table_schema.FACTS`.
        digests: from :func:`.digests_of`.
        undecodable: the refusal of an item whose media cannot be decoded.
        screened: what the screening came to; empty if it found nothing.
    """

    item: Item | Refusal
    facts: tuple[float, ...] = ()
    digests: Sequence[int] = ()
    undecodable: Refusal | None = None
    screened: str = ""


def prepare(screen: Screening | None, entry: Item | Refusal) -> Prepared:
    """Read an item's media files if they are not read yet, screen it, and determine its size and digests.

    Raises:
        UserError: if a file may not or cannot be read by now.
    """
    from vigil_data.decode import Undecodable, probe

    if isinstance(entry, Refusal):
        return Prepared(entry)
    item = read_item(entry)
    screened = ""
    if screen is not None:
        found, screened = screen(item)
        if isinstance(found, Refusal):
            return Prepared(found, screened=screened)
        item = found
    try:
        return Prepared(item, probe(item), digests_of(item), screened=screened)
    except Undecodable as error:
        refusal = Refused.of(item, error.modality, error.index, error.reason)
        return Prepared(item, (), digests_of(item), refusal, screened)


def prepare_all(
    items: Iterable[Item | Refusal], screen: Screening | None = None, cluster: RayCluster | None = None
) -> Iterator[Prepared]:
    """Yield what :func:`prepare` returns for each item, in order.

    Args:
        items: the items; see :class:`.UnreadItem` for those whose files are read here.
        screen: screening of each item.
        cluster: where this happens (default: in this process).
    """
    one = partial(prepare, screen)
    if cluster is None:
        return map(one, items)
    return chain.from_iterable(ordered_map(partial(_prepared, one), _tasks(items), cluster=cluster))


def _prepared(one: Callable[[Item | Refusal], Prepared], entries: Sequence[Item | Refusal]) -> list[Prepared]:
    return [one(entry) for entry in entries]


def _tasks(items: Iterable[Item | Refusal]) -> Iterator[list[Item | Refusal]]:
    task: list[Item | Refusal] = []
    files = 0
    for item in items:
        task.append(item)
        files += 0 if isinstance(item, Refusal) else len(item.image) + len(item.audio)
        if files >= FILES_AT_ONCE or len(task) >= ROWS_AT_ONCE:
            yield task
            task, files = [], 0
    if task:
        yield task


def admit(
    prepared: Iterable[Prepared],
    stored: Container[str],
    refused: list[Refusal],
    problems: list[str],
    progress: Callable[[int], None] | None = None,
    *,
    bad_rows: BadRows = "fail",
) -> Iterator[Prepared]:
    """Yield the valid items.

    Args:
        prepared: items in storage order, and refusals of items that the caller could not build.
        stored: ids in the dataset.
        refused: collects the undecodable items, and with ``quarantine`` the invalid ones.
        problems: collects one line for each error of the other items.
        progress: called with the number of items read so far.
        bad_rows: what to do with invalid items.
    """
    seen = IdSet()
    for count, one in enumerate(prepared, 1):
        item = one.item
        if isinstance(item, Refusal):
            refused.append(item)
        elif found := _errors(item, stored, seen):
            if bad_rows == "fail":
                problems += found
            else:
                refused.append(Refused.of(item, ROW, 0, "; ".join(found)))
        elif one.undecodable is not None:
            refused.append(one.undecodable)
        else:
            yield one
        seen.add(item.id)
        if progress is not None:
            progress(count)


def _errors(item: Item, stored: Container[str], seen: Container[str]) -> list[str]:
    """Return one line for each reason why the item cannot be stored."""
    if not item.id:
        return ["an item has an empty id"]
    found = [f"item {item.id}: an earlier item has the same id"] if item.id in seen else []
    if item.id in stored:
        found.append(f"item {item.id}: the dataset already has an item with this id")
    if storable(item.id) != item.id:
        found.append(f"item {item.id!r}: the id holds a lone surrogate, which UTF-8 cannot store")
    for label, value in item.targets.items():
        if not is_label(label):
            found.append(f"item {item.id}: label {label!r} must be lower-case letters, digits and _, starting with a letter")
        if value is not None and not 0 <= value <= 1:
            found.append(f"item {item.id}: target of {label} is {value}, outside [0, 1]")
    for name, value in item.columns.items():
        if not is_column(name):
            found.append(f"item {item.id}: a column cannot be called {name!r}; rename it")
        elif name in SAMPLING_COLUMNS and value is not None:
            try:
                sampling_value(name, value)
            except ValueError as error:
                found.append(f"item {item.id}: {error}")
    return found


def tables(prepared: Iterable[Prepared], problems: list[str], replaced: list[str]) -> Iterator[pa.Table]:
    """Collect items into tables of bounded rows and bytes.

    Args:
        prepared: valid items.
        problems: collects columns of mixed types.
        replaced: collects the ids of items with lone surrogates, which are stored as U+FFFD.
    """
    chunk: list[Prepared] = []
    size = 0
    for one in prepared:
        chunk.append(one)
        size += sum(len(payload) for modality in MODALITIES for payload in getattr(one.item, modality))
        if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield _table(chunk, problems, replaced)
            chunk, size = [], 0
    if chunk:
        yield _table(chunk, problems, replaced)


def _table(chunk: Sequence[Prepared], problems: list[str], replaced: list[str]) -> pa.Table:
    items = [one.item for one in chunk if isinstance(one.item, Item)]
    arrays = {"id": pa.array([item.id for item in items], pa.string())}
    texts = [[storable(text) for text in item.text] for item in items]
    arrays["text"] = pa.array(texts, PAYLOADS.field("text").type)
    damaged = {item.id for item, stored in zip(items, texts, strict=True) if any(map(is_not, item.text, stored))}
    for modality in ("image", "audio"):
        arrays[modality] = pa.array([list(getattr(item, modality)) for item in items], PAYLOADS.field(modality).type)
    arrays |= _segment_arrays(items)
    for index, field in enumerate(FACTS):
        arrays[field.name] = pa.array([one.facts[index] for one in chunk], field.type)
    arrays |= {name: pa.array([one.digests for one in chunk], DIGESTS.field(name).type) for name in DIGESTS.names}
    for label in dict.fromkeys(label for item in items for label in item.targets):
        arrays[TARGET + label] = pa.array([item.targets.get(label) for item in items], pa.float32())
    types = {field.name: field.type for field in (*COLUMNS, *SAMPLING)}
    for name in dict.fromkeys([*COLUMNS.names, *(name for item in items for name in item.columns)]):
        given = [item.columns.get(name) for item in items]
        values = [storable(value) if isinstance(value, str) else value for value in given]
        damaged |= {item.id for item, *pair in zip(items, given, values, strict=True) if is_not(*pair)}
        try:
            arrays[name] = pa.array(values, types.get(name))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            problems.append(f"column {name}: its values have different types ({str(error).splitlines()[0]})")
    replaced += [item.id for item in items if item.id in damaged]
    return pa.table(arrays)


def _segment_arrays(items: Sequence[Item]) -> dict[str, pa.Array]:
    """Return the columns of roles and times that some item has."""
    values: dict[str, list[Sequence[object] | None]] = {
        **{f"{modality}_roles": [item.roles.get(modality) for item in items] for modality in MODALITIES},
        **{
            f"text_{name}": [[time and time[side] for time in item.times] if item.times else None for item in items]
            for side, name in enumerate(("starts", "ends"))
        },
    }
    return {name: pa.array(of, SEGMENTS.field(name).type) for name, of in values.items() if any(v is not None for v in of)}


def joined_schema(old: pa.Schema | None, chunks: Sequence[pa.Schema]) -> pa.Schema:
    """Return the schema of old and new rows together; integers may widen to floats among new rows, but not in old ones.

    Args:
        old: schema of the dataset; ``None`` for a new one.
        chunks: schemas of the new rows' tables.

    Raises:
        UserError: if a column has values of incompatible types.
    """
    types: dict[str, pa.DataType] = {field.name: field.type for field in old or ITEMS}
    fixed = dict(types)
    problems = []
    for field in (field for schema in chunks for field in schema):
        before = types.get(field.name, pa.null())
        try:
            joined = pa.unify_schemas([pa.schema([(field.name, before)]), pa.schema([field])], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            problems.append(f"column {field.name}: {field.type} after {before}; a column has one type")
            continue
        types[field.name] = joined.field(0).type
        if types[field.name] != fixed.get(field.name, types[field.name]):
            problems.append(f"column {field.name}: {before} in the dataset, but {field.type} in the new items")
            types[field.name] = before
    cased: dict[str, str] = {}
    problems += [
        f"columns {cased[name.lower()]} and {name} differ only in case, which SQL conditions ignore; rename one"
        for name in types
        if cased.setdefault(name.lower(), name) != name
    ]
    if problems:
        raise UserError(*capped(list(dict.fromkeys(problems))))
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in types.items()])
