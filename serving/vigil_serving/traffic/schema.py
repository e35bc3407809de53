"""Columns of the traffic log: one row for each decision, and never content."""

from collections.abc import Sequence

import pyarrow as pa

from vigil_serving.traffic.options import EXPOSURE as EXPOSURE
from vigil_serving.traffic.options import ITEM_COLUMNS as ITEM_COLUMNS
from vigil_serving.traffic.options import PROBABILITY as PROBABILITY

REASON = pa.struct([("label", pa.string()), ("action", pa.string()), ("probability", pa.float32()), ("threshold", pa.float32())])
"""Type of a reason of the policy."""
TIME = pa.timestamp("us", "UTC")

BEFORE = [
    ("id", pa.string()),
    ("time", TIME),
    ("source", pa.string()),
    ("role", pa.string()),
    *((name, pa.string()) for name in ITEM_COLUMNS),
    (EXPOSURE, pa.float64()),
    ("presence", pa.string()),
]
"""Columns before the probabilities, and their types."""
AFTER = [
    ("labels", pa.list_(pa.string())),
    ("action", pa.string()),
    ("review", pa.bool_()),
    ("reasons", pa.list_(REASON)),
    ("bundle", pa.string()),
    ("policy", pa.string()),
    ("error", pa.string()),
]
"""Columns after the probabilities, and their types."""
TYPES: dict[str, pa.DataType] = dict(BEFORE + AFTER)
"""Name to type of all columns but the probabilities and those that were asked for."""


def traffic_schema(labels: Sequence[str], further: Sequence[str] = ()) -> pa.Schema:
    """Return the columns of decisions of one bundle.

    Args:
        labels: the bundle's labels.
        further: names of further columns of the items, logged as text.
    """
    probabilities = [(PROBABILITY + label, pa.float32()) for label in labels]
    return pa.schema([*BEFORE, *probabilities, *AFTER, *((name, pa.string()) for name in further)])
