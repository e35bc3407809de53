"""Threads: items that name the item they answer become items with their last ancestors as context.

Items are read twice: first every item is added, in any order, then each gets its context. Memory holds the ids; the texts are in
a temporary file that has no name, so that nothing of it stays when the process ends.

Example:
    >>> threads = Threads(context=3)
    >>> for item in items:
    ...     threads.add_item(item)
    >>> threads.resolve()
    >>> replies = list(threads.with_context(items))
    >>> replies[1].text, replies[1].roles["text"], replies[1].columns["thread"]
    (('who wants some?', 'me!'), ('context', 'body'), 'm1')
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import repeat
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.table_schema import storable
from vigil_data.errors import UserError, capped, one_line
from vigil_data.items import BODY, Item, Role
from vigil_data.loading.packing import Refusal

PARENT, THREAD = "parent_id", "thread"
"""Columns with the id of the item that an item answers, and of the first item of its thread."""

CONTEXT = 3
"""Default number of ancestors."""

CONTEXT_CHARACTERS = 2_000
"""Default length to which an ancestor's text is cut, so that long ancestors leave passages for the item itself."""

POSTED: tuple[Role, ...] = ("title", "body")
"""Roles of an ancestor's texts that become context."""

_CHUNK_ROWS = 65_536
_SHOWN = 6
_Entry = TypeVar("_Entry", Item, Item | Refusal)


class Threads:
    """Replies and what they answer.

    An item names its parent in the column ``parent_id``. Its context is one text for each ancestor, oldest first, before its own
    texts; images and sounds of ancestors are not copied. An item that has texts of the role ``context`` keeps those, and gets no
    others.

    Args:
        context: largest number of ancestors of an item's context; 0 only fills the column ``thread``.
        max_characters: length to which the text of an ancestor is cut.

    Attributes:
        replies: number of added items with a parent.
        missing: number of those whose parent is neither among the added items nor in the dataset.
        answered: number of stored items whose parent is among the added items; they keep the context that they have.
        cut: number of items with an ancestor whose text was cut, as far as :meth:`with_context` was read.
    """

    def __init__(self, context: int = CONTEXT, max_characters: int = CONTEXT_CHARACTERS) -> None:
        self.replies = self.missing = self.answered = self.cut = 0
        self._context, self._max_characters = context, max_characters
        self._ids = _Strings()
        self._parents = _Strings()
        self._parent_N: NDArray[np.int64] = np.empty(0, np.int64)
        self._root_N = self._parent_N
        # A database without a name is a temporary file that SQLite unlinks when it opens it; most of it is not in memory.
        self._texts = sqlite3.connect("")
        self._texts.execute("CREATE TABLE texts (row INTEGER PRIMARY KEY, text TEXT)")
        self._text = lru_cache(maxsize=4096)(self._read_text)

    def add(self, id_: str, parent: str | None, text: str) -> None:
        """Add an item.

        Args:
            id_: its id.
            parent: id of the item that it answers.
            text: what its replies have as context; see :func:`posted_text`.
        """
        self._add_text(len(self._ids), text)
        self._ids.append(storable(id_))
        self._parents.append(None if parent is None else storable(parent))
        self.replies += parent is not None

    def add_item(self, item: Item) -> None:
        """Add an item; its media are not used."""
        self.add(item.id, item.columns.get(PARENT), posted_text(item.text, item.roles.get("text")))

    def resolve(
        self, stored: Dataset | None = None, positions: Callable[[Collection[str]], Mapping[str, str]] = lambda _: {}
    ) -> None:
        """Find the ancestors of the added items.

        Args:
            stored: dataset that they are appended to; parents are looked up there too.
            positions: finds the rows of ids in the imported file, for messages.

        Raises:
            UserError: if items are their own ancestors, with their ids.
        """
        ids, parents, added = self._ids.column(), self._parents.column(), len(self._ids)
        if stored is not None:
            columns = stored.table(["id", *([PARENT] if PARENT in stored.columns else [])])
            ids = pa.chunked_array([*ids.chunks, *columns["id"].chunks], pa.string())
            more = columns[PARENT].chunks if PARENT in stored.columns else [pa.nulls(len(stored), pa.string())]
            parents = pa.chunked_array([*parents.chunks, *more], pa.string())
        known_N = np.asarray(pc.is_valid(parents).to_numpy(), np.bool_)
        found = pc.index_in(parents, value_set=ids).fill_null(-1).to_numpy().astype(np.int64)
        self._parent_N = np.where(known_N, found, -1)
        self.missing = int((known_N & (self._parent_N < 0))[:added].sum())
        self.answered = int(((self._parent_N >= 0) & (self._parent_N < added))[added:].sum())
        self._root_N = _roots(self._parent_N)
        self._all_ids, self._all_parents = ids, parents
        cyclic_N = self._parent_N[self._root_N] >= 0
        if cyclic_N.any():
            raise UserError(*self._cycles(np.unique(self._root_N[cyclic_N]), positions))
        if stored is not None:
            self._add_stored(stored, added)

    def with_context(self, items: Iterable[_Entry]) -> Iterator[_Entry]:
        """Yield items with their context and their thread.

        Args:
            items: added items, in the order in which they were added, but not always all of them; refusals are passed on.
        """
        rows = enumerate(id_ for chunk in self._ids.column().chunks for id_ in chunk.to_pylist())
        for item in items:
            if isinstance(item, Refusal):
                yield item
            else:
                id_ = storable(item.id)
                yield self._with_context(next(row for row, added in rows if added == id_), item)

    def _with_context(self, row: int, item: Item) -> Item:
        root = int(self._root_N[row])
        thread = item.columns.get(THREAD) or self._all_parents[root].as_py() or self._all_ids[root].as_py()
        contexts: list[str] = []
        ancestor = int(self._parent_N[row])
        for _ in range(0 if "context" in item.roles.get("text", ()) else self._context):
            if ancestor < 0:
                break
            contexts += [text] if (text := self._text(ancestor)) else []
            ancestor = int(self._parent_N[ancestor])
        self.cut += any(len(text) > self._max_characters for text in contexts)
        changed = item.with_texts(contexts[::-1], "context", first=True)
        return replace(changed, columns={**item.columns, THREAD: thread})

    def _add_text(self, row: int, text: str) -> None:
        if text := storable(text).strip():
            cut = text if len(text) <= self._max_characters else text[: self._max_characters] + "…"
            self._texts.execute("INSERT INTO texts VALUES (?, ?)", (row, cut))

    def _add_stored(self, stored: Dataset, added: int) -> None:
        """Add the texts of stored items that are an ancestor of an added one."""
        ancestor_N, wanted = self._parent_N[:added], np.empty(0, np.int64)
        for _ in range(self._context):
            ancestor_N = np.unique(ancestor_N[ancestor_N >= 0])
            wanted = np.union1d(wanted, ancestor_N[ancestor_N >= added])
            ancestor_N = self._parent_N[ancestor_N]
        for start in range(0, len(wanted), 1024):
            rows = wanted[start : start + 1024]
            for row, item in zip(rows, stored.take(rows - added, ["text"]), strict=True):
                self._add_text(int(row), posted_text(item.text, item.roles.get("text")))

    def _read_text(self, row: int) -> str:
        found = self._texts.execute("SELECT text FROM texts WHERE row = ?", (row,)).fetchone()
        return found[0] if found else ""

    def _cycles(self, on_cycles: NDArray[np.int64], positions: Callable[[Collection[str]], Mapping[str, str]]) -> list[str]:
        """Return one line for each cycle; each has at least one of its rows in ``on_cycles``."""
        seen: set[int] = set()
        cycles: list[list[str]] = []
        for start in on_cycles.tolist():
            rows: list[int] = []
            row = start
            while row not in seen:
                seen.add(row)
                rows.append(row)
                row = int(self._parent_N[row])
            if rows:
                cycles.append([self._all_ids[row].as_py() for row in rows])
        places = positions({cycle[0] for cycle in cycles[:20]})
        lines = []
        for ids in cycles:
            shown = [*ids[:_SHOWN], *(["…"] if len(ids) > _SHOWN else []), ids[0]]
            place = f"{places[ids[0]]}: " if ids[0] in places else ""
            lines.append(one_line(f"{place}{PARENT} leads back to the item itself: {' → '.join(shown)}; correct one of them"))
        return capped(lines)


def posted_text(texts: Sequence[str], roles: Sequence[Role] | None) -> str:
    """Return the texts of an item that its replies have as context, a line for each."""
    return "\n".join(text for text, role in zip(texts, roles or repeat(BODY), strict=False) if role in POSTED)


class _Strings:
    """A column of strings that grows, in a few bytes more than they have."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._last: list[str | None] = []

    def __len__(self) -> int:
        return len(self._chunks) * _CHUNK_ROWS + len(self._last)

    def append(self, value: str | None) -> None:
        self._last.append(value)
        if len(self._last) == _CHUNK_ROWS:
            self._chunks.append(pa.array(self._last, pa.string()))
            self._last = []

    def column(self) -> pa.ChunkedArray:
        return pa.chunked_array([*self._chunks, pa.array(self._last, pa.string())], pa.string())


def _roots(parent_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row that each row's ancestors end in; for those that end in a cycle, a row of the cycle.

    Each step doubles the distance, so that chains of any length take the logarithm of it.
    """
    root_N = np.where(parent_N < 0, np.arange(len(parent_N)), parent_N)
    for _ in range(len(parent_N).bit_length()):
        root_N = root_N[root_N]
    return root_N
