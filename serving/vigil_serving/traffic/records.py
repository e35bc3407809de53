"""Decisions as rows of the traffic log."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from vigil_serving.runtime.decisions import Decision
from vigil_serving.traffic.options import Origin
from vigil_serving.traffic.schema import EXPOSURE, ITEM_COLUMNS, PROBABILITY, REASON, TIME, traffic_schema


@dataclass(slots=True)
class LoggedDecisions:
    """Decisions of one origin, and what else is logged of each.

    Attributes:
        microseconds: when each was made, since 1970.
        decisions: the decisions.
        columns: values of each item's columns, in the order of :func:`logged_columns`.
    """

    microseconds: list[int] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    columns: list[tuple[Any, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decisions)


def logged_columns(further: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the items' columns that are logged: :data:`ITEM_COLUMNS`, the exposure, and ``further``."""
    return (*ITEM_COLUMNS, EXPOSURE, *further)


def record_batch(rows: LoggedDecisions, origin: Origin, further: Sequence[str]) -> pa.RecordBatch:
    """Return decisions of one origin as rows with the columns of :func:`~vigil_serving.traffic.schema.traffic_schema`.

    An item that could not be decoded has an error, and null in the columns that follow from its content.
    """
    try:
        return _record_batch(rows, origin, further)
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair, which UTF-8 cannot
        return _record_batch(_encodable(rows), origin, further)


def _record_batch(rows: LoggedDecisions, origin: Origin, further: Sequence[str]) -> pa.RecordBatch:
    decisions, count = rows.decisions, len(rows)
    decoded_N = np.array([decision.error is None for decision in decisions])
    decided_N = decoded_N if origin.policy is not None else np.zeros_like(decoded_N)
    probabilities = [decision.probabilities for decision in decisions]
    arrays: dict[str, pa.Array] = {
        "id": pa.array([decision.id for decision in decisions], pa.string()),
        "time": pa.array(np.array(rows.microseconds, np.int64)).cast(TIME),
        "source": _repeated(origin.source, count),
        "role": _repeated(origin.role, count),
        "presence": pa.array([d.presence if d.error is None else None for d in decisions], pa.string()),
        "labels": _lists([d.labels for d in decisions], lambda flat: pa.array(flat, pa.string()), decoded_N),
        "action": pa.array([d.action for d in decisions], pa.string()),
        "review": pa.array(np.array([d.review for d in decisions]), mask=~decided_N),
        "reasons": _lists([d.reasons for d in decisions], _reasons, decided_N),
        "bundle": _repeated(origin.bundle, count),
        "policy": _repeated(origin.policy, count),
        "error": pa.array([d.error for d in decisions], pa.string()),
    }
    for label in origin.labels:
        arrays[PROBABILITY + label] = pa.array([of.get(label) for of in probabilities], pa.float32())
    for name, values in zip(logged_columns(further), zip(*rows.columns, strict=True), strict=True):
        arrays[name] = exposures(values) if name == EXPOSURE else texts(values)
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


def texts(values: Sequence[Any]) -> pa.Array:
    """Return values of an item's column as they are logged: text as it is, all else as JSON."""
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        as_text = [value if value is None or isinstance(value, str) else json.dumps(value, default=str) for value in values]
        return pa.array(as_text, pa.string())


def exposures(values: Sequence[Any]) -> pa.Array:
    """Return numbers of views; null for all that is not a finite number of at least 0."""
    return pa.array([float(value) if _is_exposure(value) else None for value in values], pa.float64())


def _is_exposure(value: Any) -> bool:
    return value is not None and type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _encodable(rows: LoggedDecisions) -> LoggedDecisions:
    def clean(value: Any) -> Any:
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value

    decisions = [replace(d, id=clean(d.id), error=clean(d.error)) for d in rows.decisions]
    return LoggedDecisions(rows.microseconds, decisions, [tuple(map(clean, of)) for of in rows.columns])
