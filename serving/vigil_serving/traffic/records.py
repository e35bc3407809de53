"""Decisions as rows of the traffic log."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vigil_serving.runtime.decisions import Decision
from vigil_serving.traffic.options import Origin
from vigil_serving.traffic.schema import EXPOSURE, ITEM_COLUMNS, PROBABILITY, REASON, TIME, traffic_schema


class LoggedDecision(NamedTuple):
    """A decision, when it was made (microseconds since 1970), and the item's logged columns (:func:`logged_columns`)."""

    microseconds: int
    decision: Decision
    columns: tuple[Any, ...]


def logged_columns(columns: Mapping[str, Any], further: Sequence[str]) -> tuple[Any, ...]:
    """Return those columns of an item that are logged: :data:`ITEM_COLUMNS`, the exposure, and ``further``."""
    get = columns.get
    return (*(get(name) for name in ITEM_COLUMNS), get(EXPOSURE), *(get(name) for name in further))


def record_batch(rows: Sequence[LoggedDecision], origin: Origin, further: Sequence[str]) -> pa.RecordBatch:
    """Return decisions of one origin as rows with the columns of :func:`~vigil_serving.traffic.schema.traffic_schema`.

    An item that could not be decoded has an error, and null in the columns that follow from its content.
    """
    try:
        return _record_batch(rows, origin, further)
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair, which UTF-8 cannot
        return _record_batch([_encodable(row) for row in rows], origin, further)


def _record_batch(rows: Sequence[LoggedDecision], origin: Origin, further: Sequence[str]) -> pa.RecordBatch:
    decisions = [row.decision for row in rows]
    decoded_N = np.array([decision.error is None for decision in decisions])
    arrays: dict[str, pa.Array] = {
        "id": pa.array([decision.id for decision in decisions], pa.string()),
        "time": pa.array(np.array([row.microseconds for row in rows], np.int64)).cast(TIME),
        "source": _repeated(origin.source, len(rows)),
        "role": _repeated(origin.role, len(rows)),
    }
    for place, name in enumerate(ITEM_COLUMNS):
        arrays[name] = pa.array([as_text(row.columns[place]) for row in rows], pa.string())
    place = len(ITEM_COLUMNS)
    arrays[EXPOSURE] = pa.array([as_exposure(row.columns[place]) for row in rows], pa.float64())
    arrays["presence"] = pa.array([d.presence if d.error is None else None for d in decisions], pa.string())
    for label in origin.labels:
        arrays[PROBABILITY + label] = pa.array([d.probabilities.get(label) for d in decisions], pa.float32())
    arrays["labels"] = _lists([d.labels for d in decisions], lambda flat: pa.array(flat, pa.string()), decoded_N)
    arrays["action"] = pa.array([d.action for d in decisions], pa.string())
    decided_N = decoded_N if origin.policy is not None else np.zeros_like(decoded_N)
    arrays["review"] = pa.array(np.array([d.review for d in decisions]), mask=~decided_N)
    arrays["reasons"] = _lists([d.reasons for d in decisions], _reasons, decided_N)
    arrays["bundle"], arrays["policy"] = _repeated(origin.bundle, len(rows)), _repeated(origin.policy, len(rows))
    arrays["error"] = pa.array([d.error for d in decisions], pa.string())
    for place, name in enumerate(further, len(ITEM_COLUMNS) + 1):
        arrays[name] = pa.array([as_text(row.columns[place]) for row in rows], pa.string())
    schema = traffic_schema(origin.labels, further)
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _lists(values: Sequence[tuple[Any, ...]], build: Any, known_N: Any) -> pa.ListArray:
    """Return a list for each row, null where it is not known; ``build`` makes an array of all entries."""
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
    entries = build(list(chain.from_iterable(values)))
    return pa.ListArray.from_arrays(pa.array(offsets), entries, mask=pa.array(~known_N))


def _reasons(reasons: Sequence[Any]) -> pa.StructArray:
    fields = [pa.array([getattr(reason, field.name) for reason in reasons], field.type) for field in REASON]
    return pa.StructArray.from_arrays(fields, fields=list(REASON))


def _repeated(value: str | None, times: int) -> pa.Array:
    return pa.nulls(times, pa.string()) if value is None else pa.repeat(value, times)


def as_text(value: Any) -> str | None:
    """Return a column's value as it is logged: text as it is, all else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def as_exposure(value: Any) -> float | None:
    """Return a number of views; ``None`` for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= sys.float_info.max else None


def _encodable(row: LoggedDecision) -> LoggedDecision:
    def clean(value: Any) -> Any:
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value

    decision = replace(row.decision, id=clean(row.decision.id), error=clean(row.decision.error))
    return LoggedDecision(row.microseconds, decision, tuple(clean(value) for value in row.columns))
