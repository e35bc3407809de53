"""Summary of traffic: number of decisions by day, bundle, policy, action and label."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.progress import ProgressCallback
from vigil_monitoring.traffic.reader import Traffic

COUNTED = ("source", "bundle", "policy", "action", "presence", "content_type", "language", "market")
"""Columns whose values are counted."""


@dataclass(slots=True)
class TrafficSummary:
    """Counts over traffic of one role.

    Attributes:
        role: the role.
        rows: number of decisions.
        rows_by_day: day (YYYY-MM-DD, UTC) to its decisions.
        bytes_by_day: day to the bytes of its files; empty for a table of scores.
        bytes: bytes of all files.
        files: number of files.
        other_roles: other roles with their decisions in the same files.
        labels: label to the number of decisions that have it.
        values: column to its values and their decisions, the most frequent first; null is absent.
        review: number of decisions that were sent to human review.
        errors: number of items that could not be decoded.
        exposure: sum of the views, and the number of decisions that have them.
        assumed_day: whether all rows count as one day, since they have no time.
    """

    role: str
    rows: int
    rows_by_day: dict[str, int]
    bytes_by_day: dict[str, int]
    bytes: int
    files: int
    other_roles: dict[str, int]
    labels: dict[str, int] = field(default_factory=dict)
    values: dict[str, dict[str, int]] = field(default_factory=dict)
    review: int = 0
    errors: int = 0
    exposure: tuple[float, int] = (0.0, 0)
    assumed_day: bool = False


def summarize(traffic: Traffic, progress: ProgressCallback | None = None) -> TrafficSummary:
    """Count the decisions of traffic in one pass.

    Args:
        traffic: the traffic.
        progress: called with the rows done and the total.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("labels", *COUNTED)}
    review = errors = known = done = 0
    views = 0.0
    for batch in traffic.batches(["labels", *COUNTED, "review", "error", "exposure"]):
        _add(counts["labels"], pc.list_flatten(batch["labels"]))
        for name in COUNTED:
            _add(counts[name], batch[name])
        review += pc.sum(batch["review"]).as_py() or 0
        errors += batch.num_rows - batch["error"].null_count
        known += batch.num_rows - batch["exposure"].null_count
        views += pc.sum(batch["exposure"]).as_py() or 0.0
        done += batch.num_rows
        if progress is not None:
            progress("counting", done, traffic.rows)
    sizes: Counter[date] = Counter()
    for source in traffic.sources:
        if source.day is not None:
            sizes[source.day] += source.bytes
    return TrafficSummary(
        role=traffic.role,
        rows=traffic.rows,
        rows_by_day={day.isoformat(): rows for day, rows in traffic.rows_by_day.items()},
        bytes_by_day={day.isoformat(): size for day, size in sorted(sizes.items())},
        bytes=sum(source.bytes for source in traffic.sources),
        files=len(traffic.sources),
        other_roles={role: rows for role, rows in traffic.rows_by_role.items() if role != traffic.role},
        labels={label: counts["labels"][label] for label in traffic.labels},
        values={name: dict(counts[name].most_common()) for name in COUNTED if counts[name]},
        review=review,
        errors=errors,
        exposure=(views, known),
        assumed_day=traffic.assumed_day is not None,
    )


def _add(counter: Counter[str], values: pa.Array) -> None:
    counter.update({entry["values"]: entry["counts"] for entry in pc.value_counts(values.drop_null()).to_pylist()})
