"""The columns of a dataset's tables: their names, types and what may be called so."""

import re

import pyarrow as pa

TARGET = "target:"
"""Prefix of a label's column; Lance refuses the dot that manifests and predictions tables use."""

COLUMNS = pa.schema(
    [
        ("created_at", pa.timestamp("us", tz="UTC")),
        *((name, pa.string()) for name in ("author", "content_type", "language", "source", "split")),
    ]
)
"""The columns that every dataset has and whose types are fixed; each may be null."""

PAYLOADS = pa.schema(
    [("text", pa.list_(pa.string())), ("image", pa.list_(pa.large_binary())), ("audio", pa.list_(pa.large_binary()))]
)
"""An item's payloads of each modality, in order; an empty list is none."""

FACTS = pa.schema([("characters", pa.int64()), ("images", pa.int64()), ("seconds", pa.float64())])
"""What an item costs to read and encode, known from headers alone."""

ITEMS = pa.schema([("id", pa.string()), *COLUMNS, *PAYLOADS, *FACTS])
"""The table of items before its first label and further column."""

QUARANTINE = pa.schema([("id", pa.string()), ("modality", pa.string()), ("index", pa.int64()), ("reason", pa.string())])
"""The table of refused items."""

_LABEL = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TAKEN = {"id", *PAYLOADS.names, *FACTS.names}


def is_label(name: str) -> bool:
    """Whether a label may be called ``name``: what a taxonomy accepts."""
    return _LABEL.fullmatch(name) is not None


def is_column(name: str) -> bool:
    """Whether a column to slice by may be called ``name`` (SQL ignores case, so ``Author`` would be taken for ``author``)."""
    if name in COLUMNS.names:
        return True
    lowered = name.lower()
    taken = lowered in _TAKEN or lowered in COLUMNS.names or lowered.startswith((TARGET, "_"))
    return bool(name) and not taken and not set(name) & set('.`"')


def storable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
