"""Columns of a dataset's tables: names, types and naming rules."""

import re

import pyarrow as pa

from vigil_data.items import SAMPLING_COLUMNS

TARGET = "target:"
"""Prefix of a label's column; Lance refuses the dot that manifests and predictions tables use."""

PROVENANCE = "provenance:"
"""Prefix of the column with the provenance of a label's targets, which a dataset has if some of them are not from the import of
their row; see :mod:`vigil_data.dataset.provenance`."""

PROVENANCE_TYPE = pa.struct([("source", pa.string()), ("at", pa.timestamp("us", tz="UTC")), ("policy", pa.string())])
"""Who or what gave a target, when, and under which policy version."""

COLUMNS = pa.schema(
    [
        ("created_at", pa.timestamp("us", tz="UTC")),
        *((name, pa.string()) for name in ("author", "content_type", "language", "source", "split")),
    ]
)
"""Columns of every dataset, with fixed types; each may be null."""

SAMPLING = pa.schema([(name, pa.float64()) for name in SAMPLING_COLUMNS])
"""Columns that a dataset has if its items do; see :data:`vigil_data.items.SAMPLING_COLUMNS`."""

PAYLOADS = pa.schema(
    [("text", pa.list_(pa.string())), ("image", pa.list_(pa.large_binary())), ("audio", pa.list_(pa.large_binary()))]
)
"""An item's media of each modality, in order."""

SEGMENTS = pa.schema(
    [
        *((f"{name}_roles", pa.list_(pa.string())) for name in PAYLOADS.names),
        *((f"text_{name}", pa.list_(pa.float64())) for name in ("starts", "ends")),
    ]
)
"""Roles of an item's media, and times of its texts in seconds, in the order of :data:`PAYLOADS`; null if all are ``body`` or none
has a time. Columns that a dataset has if its items do."""

FACTS = pa.schema([("characters", pa.int64()), ("images", pa.int64()), ("seconds", pa.float64())])
"""Size of an item, from headers: the basis of its cost."""

DIGESTS = pa.schema([("digests", pa.list_(pa.uint64()))])
"""Digests of an item's content, to find duplicates; see :mod:`vigil_data.dataset.leaks`."""

ITEMS = pa.schema([("id", pa.string()), *COLUMNS, *PAYLOADS, *FACTS, *DIGESTS])
"""The table of items without labels and other columns."""

QUARANTINE = pa.schema(
    [
        ("id", pa.string()),
        ("modality", pa.string()),
        ("index", pa.int64()),
        ("reason", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("author", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("quarantined_at", pa.timestamp("us", tz="UTC")),
        ("command", pa.string()),
        ("version", pa.int64()),
        ("origin", pa.string()),
    ]
)
"""The table of quarantined items: the id (empty if it is unknown), the modality (``row`` for a row that is wrong itself), the
index of the medium, the reason, the file and the number of its line or row, the author and time of the item, when and by which
command it was quarantined, the newest version of the dataset at that time, and how to read it again as JSON (see
:class:`vigil_data.quality.origin.Origin`)."""

_LABEL = re.compile(r"[a-z][a-z0-9_]{0,63}")
INTERNAL = frozenset({"id", *PAYLOADS.names, *SEGMENTS.names, *FACTS.names, *DIGESTS.names})
"""Columns that hold an item's id, content and size, and no value to slice by."""

_FIXED = {*COLUMNS.names, *SAMPLING.names}


def is_label(name: str) -> bool:
    """Whether a taxonomy accepts ``name`` for a label."""
    return _LABEL.fullmatch(name) is not None


def sql_literal(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'{}'".format(text.replace("'", "''"))


def is_column(name: str) -> bool:
    """Whether ``name`` is valid for a column to slice by (SQL ignores case, so ``Author`` would clash with ``author``)."""
    if name in _FIXED:
        return True
    lowered = name.lower()
    taken = lowered in INTERNAL or lowered in _FIXED or lowered.startswith((TARGET, PROVENANCE, "_"))
    return bool(name) and not taken and not set(name) & set('.`"')


def storable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
