"""Columns of a dataset's tables: names, types and naming rules."""

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
"""Columns of every dataset, with fixed types; each may be null."""

PAYLOADS = pa.schema(
    [("text", pa.list_(pa.string())), ("image", pa.list_(pa.large_binary())), ("audio", pa.list_(pa.large_binary()))]
)
"""An item's media of each modality, in order."""

FACTS = pa.schema([("characters", pa.int64()), ("images", pa.int64()), ("seconds", pa.float64())])
"""Size of an item, from headers: the basis of its cost."""

ITEMS = pa.schema([("id", pa.string()), *COLUMNS, *PAYLOADS, *FACTS])
"""The table of items without labels and other columns."""

QUARANTINE = pa.schema([("id", pa.string()), ("modality", pa.string()), ("index", pa.int64()), ("reason", pa.string())])
"""The table of quarantined items."""

_LABEL = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TAKEN = {"id", *PAYLOADS.names, *FACTS.names}


def is_label(name: str) -> bool:
    """Whether a taxonomy accepts ``name`` for a label."""
    return _LABEL.fullmatch(name) is not None


def is_column(name: str) -> bool:
    """Whether ``name`` is valid for a column to slice by (SQL ignores case, so ``Author`` would clash with ``author``)."""
    if name in COLUMNS.names:
        return True
    lowered = name.lower()
    taken = lowered in _TAKEN or lowered in COLUMNS.names or lowered.startswith((TARGET, "_"))
    return bool(name) and not taken and not set(name) & set('.`"')


def storable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
