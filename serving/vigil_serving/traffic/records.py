"""Decisions as rows of the traffic log."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from vigil_serving.runtime.decisions import Decision
from vigil_serving.traffic.options import Origin
from vigil_serving.traffic.schema import EXPOSURE, ITEM_COLUMNS, PROBABILITY, REASON, TIME, traffic_schema

_REASON_FIELDS = list(REASON)


@dataclass(slots=True)
class LoggedDecisions:
    """Decisions of one origin, and what else is logged of each.

    Attributes:
        microseconds: when each was made, since 1970.
        decisions: the decisions.
        columns: the columns of each item; those that :func:`logged_columns` names are logged.
    """

    microseconds: list[int] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    columns: list[Mapping[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decisions)


def logged_columns(further: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the items' columns that are logged: :data:`ITEM_COLUMNS`, the exposure, and ``further``."""
    return (*ITEM_COLUMNS, EXPOSURE, *further)


def record_batch(rows: LoggedDecisions, origin: Origin, further: tuple[str, ...]) -> pa.RecordBatch:
    """Return decisions of one origin as rows with the columns of :func:`~vigil_serving.traffic.schema.traffic_schema`.

    An item that could not be decoded has an error, and null in the columns that follow from its content.
    """
    try:
        return _record_batch(rows, origin, further)
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair, which UTF-8 cannot
        return _record_batch(_encodable(rows, further), origin, further)


def _record_batch(rows: LoggedDecisions, origin: Origin, further: tuple[str, ...]) -> pa.RecordBatch:
    # It competes with the thread that answers: a batch is some hundred rows, and each call of pyarrow costs as much as several.
    decisions, count = rows.decisions, len(rows)
    errors = [decision.error for decision in decisions]
    decoded_N = None if errors.count(None) == count else np.array([error is None for error in errors])
    decided_N = decoded_N if origin.policy is not None else np.zeros(count, np.bool_)
    arrays: dict[str, pa.Array] = {
        "id": pa.array([decision.id for decision in decisions], pa.string()),
        "time": _from_buffer(np.array(rows.microseconds, np.int64), TIME),
        "source": _repeated(origin.source, count),
        "role": _repeated(origin.role, count),
        "presence": _strings([decision.presence if decision.error is None else None for decision in decisions]),
        "labels": _lists([decision.labels for decision in decisions], _label_names, decoded_N),
        "action": _strings([decision.action for decision in decisions]),
        "review": _reviews([decision.review for decision in decisions], decided_N),
        "reasons": _lists([decision.reasons for decision in decisions], _reasons, decided_N),
        "bundle": _repeated(origin.bundle, count),
        "policy": _repeated(origin.policy, count),
        "error": _strings(errors),
    }
    for label, array in zip(origin.labels, _probabilities(decisions, origin.labels), strict=True):
        arrays[PROBABILITY + label] = array
    for name in logged_columns(further):
        values = [columns.get(name) for columns in rows.columns]
        arrays[name] = exposures(values) if name == EXPOSURE else texts(values)
    schema = _schema(origin.labels, further)
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


_schema = lru_cache(maxsize=16)(traffic_schema)


def _probabilities(decisions: Sequence[Decision], labels: tuple[str, ...]) -> list[pa.Array]:
    """Return the probabilities of each label; null for items that could not be decoded."""
    every = [decision.probabilities for decision in decisions]
    if len(labels) < 2 or not all(every):
        return [pa.array([of.get(label) for of in every], pa.float32()) for label in labels]
    try:
        flat = chain.from_iterable(map(itemgetter(*labels), every))
        matrix_LN = np.fromiter(flat, np.float32, len(every) * len(labels)).reshape(-1, len(labels)).T
    except KeyError:
        return [pa.array([of.get(label) for of in every], pa.float32()) for label in labels]
    return [_from_buffer(np.ascontiguousarray(row_N), pa.float32()) for row_N in matrix_LN]


def _from_buffer(values_N: Any, kind: pa.DataType) -> pa.Array:
    """Return numbers without a null as they lie in memory; `pa.array` of a NumPy array is slower, since it looks for pandas."""
    return pa.Array.from_buffers(kind, len(values_N), [None, pa.py_buffer(values_N)])


def _lists(values: Sequence[tuple[Any, ...]], build: Callable[[list[Any]], pa.Array], known_N: Any) -> pa.ListArray:
    """Return a list for each row, null where it is not known; ``build`` makes an array of all entries."""
    offsets = np.zeros(len(values) + 1, np.int32)
    if any(values):
        np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=offsets[1:])
    mask = None if known_N is None else pa.array(~known_N)
    return pa.ListArray.from_arrays(_from_buffer(offsets, pa.int32()), build(list(chain.from_iterable(values))), mask=mask)


def _label_names(names: list[str]) -> pa.Array:
    return pa.array(names, pa.string())


def _reasons(reasons: list[Any]) -> pa.StructArray:
    fields = [pa.array([getattr(reason, each.name) for reason in reasons], each.type) for each in _REASON_FIELDS]
    return pa.StructArray.from_arrays(fields, fields=_REASON_FIELDS)


def _reviews(values: list[bool], known_N: Any) -> pa.Array:
    return pa.array(values, pa.bool_()) if known_N is None else pa.array(np.array(values, np.bool_), mask=~known_N)


def _repeated(value: str | None, times: int) -> pa.Array:
    return _at_least(value, 1 << (times - 1).bit_length()).slice(0, times)


@lru_cache(maxsize=128)
def _at_least(value: str | None, times: int) -> pa.Array:
    return pa.nulls(times, pa.string()) if value is None else pa.repeat(value, times)


def _strings(values: list[Any]) -> pa.Array:
    return _repeated(None, len(values)) if values.count(None) == len(values) else pa.array(values, pa.string())


def texts(values: list[Any]) -> pa.Array:
    """Return values of an item's column as they are logged: text as it is, all else as JSON."""
    try:
        return _strings(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        as_text = [value if value is None or isinstance(value, str) else json.dumps(value, default=str) for value in values]
        return pa.array(as_text, pa.string())


def exposures(values: Sequence[Any]) -> pa.Array:
    """Return numbers of views; null for all that is not a finite number of at least 0."""
    most, numbers = sys.float_info.max, (int, float)
    return pa.array([float(of) if type(of) in numbers and 0 <= of <= most else None for of in values], pa.float64())


def _encodable(rows: LoggedDecisions, further: tuple[str, ...]) -> LoggedDecisions:
    def clean(value: Any) -> Any:
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value

    decisions = [replace(d, id=clean(d.id), error=clean(d.error)) for d in rows.decisions]
    names = logged_columns(further)
    columns: list[Mapping[str, Any]] = [{name: clean(of.get(name)) for name in names} for of in rows.columns]
    return LoggedDecisions(rows.microseconds, decisions, columns)
