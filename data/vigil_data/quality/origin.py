"""Where an item came from: what the quarantine keeps of a refused item, so that its source can be read again."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.items import Item
from vigil_data.loading.packing import Refusal

ROW = "row"
"""Modality in the quarantine table of a row that is wrong itself: not readable, or a value or its id is invalid."""

_POSITION = re.compile(r"(.*):(?: row )?(\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Origin:
    """What was imported, and how.

    Attributes:
        importer: ``manifest``, the name of a public dataset, or ``dataset`` for an item that a check took out of one.
        path: what was read: an absolute path.
        options: options of the importer that differ from its defaults; for ``dataset`` the version that holds the item.
    """

    importer: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the origin as one line of JSON."""
        return json.dumps({"importer": self.importer, "path": self.path, "options": dict(self.options)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Origin":
        """Return the origin that :meth:`to_json` wrote."""
        return cls(**json.loads(text))


class Place(NamedTuple):
    """Origin of one item: the file, and the number of its line (or row, in Parquet) where it is known."""

    origin: Origin
    file: str
    row: int | None = None

    @classmethod
    def at(cls, origin: Origin, position: str | None) -> "Place":
        """Return the place of a position such as ``posts.jsonl:17``; that of the origin's path for ``None``."""
        found = _POSITION.fullmatch(position or "")
        return cls(origin, str(Path(found[1]).absolute()), int(found[2])) if found else cls(origin, origin.path)


Places = Callable[[Collection[str]], Mapping[str, Place]]
"""Finds the places of ids."""


@dataclass(frozen=True, slots=True)
class Refused(Refusal):
    """A refusal with what the quarantine needs to find the item again, and to erase it.

    Attributes:
        author: the item's author.
        created_at: when it was written.
        place: where it came from.
    """

    author: str | None = None
    created_at: datetime | None = None
    place: Place | None = None

    @classmethod
    def of(cls, item: Item, modality: str, index: int, reason: str, place: Place | None = None) -> "Refused":
        """Return the refusal of an item."""
        author, created_at = item.columns.get("author"), item.columns.get("created_at")
        author = author if isinstance(author, str) else None
        return cls(
            item.id or "", modality, index, reason, author, created_at if isinstance(created_at, datetime) else None, place
        )
