"""What the traffic itself says: decisions by day and action, and when models, policies and thresholds changed."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vigil_data.progress import ProgressCallback
from vigil_monitoring.traffic import Traffic

NO_ACTION = "(none)"
"""Action of decisions without a policy."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of what decides.

    Attributes:
        day: first day with it.
        what: ``model``, ``policy`` or ``threshold``.
        text: the change, in a few words.
    """

    day: date
    what: str
    text: str


@dataclass(frozen=True, slots=True)
class TrafficHistory:
    """Volumes and changes of a traffic log.

    Attributes:
        days: days with decisions, in order.
        decisions: number of decisions of each day.
        by_action: action to the number of decisions of each day.
        reviews: decisions of each day that were sent to reviewers.
        errors: decisions of each day that failed, such as items that could not be decoded.
        changes: what changed within the period, in order.
        bundles: digests of the bundles that decided, in the order of their first days.
        policies: names and versions of the policies, in the same order.
    """

    days: tuple[date, ...]
    decisions: tuple[int, ...]
    by_action: Mapping[str, tuple[int, ...]]
    reviews: tuple[int, ...]
    errors: tuple[int, ...]
    changes: tuple[Change, ...]
    bundles: tuple[str, ...]
    policies: tuple[str, ...]


def read_history(traffic: Traffic, progress: ProgressCallback | None = None) -> TrafficHistory:
    """Read volumes and changes; memory does not grow with the number of decisions.

    Args:
        traffic: the traffic.
        progress: shows the decisions read.
    """
    actions: Counter[tuple[date, str]] = Counter()
    reviews: Counter[date] = Counter()
    errors: Counter[date] = Counter()
    used: dict[tuple[str, str], Counter[date]] = defaultdict(Counter)
    thresholds: dict[tuple[str, str], dict[date, set[float]]] = defaultdict(lambda: defaultdict(set))
    done = 0
    for batch in traffic.batches(["time", "action", "review", "error", "bundle", "policy", "reasons"]):
        done += batch.num_rows
        if progress is not None:
            progress("reading decisions", done, traffic.rows)
        day = batch["time"].cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
        for (of, action), count in _counts(day, pc.fill_null(batch["action"], NO_ACTION)).items():
            actions[of, action] += count
        for (of, _), count in _counts(day, pc.fill_null(batch["review"], False), only=True).items():
            reviews[of] += count
        for (of, _), count in _counts(day, batch["error"].is_valid(), only=True).items():
            errors[of] += count
        for name in ("bundle", "policy"):
            for (of, value), count in _counts(day, batch[name]).items():
                if value is not None:
                    used[name, value][of] += count
        _add_thresholds(thresholds, day, batch["reasons"])
    days = traffic.days
    every = sorted({action for _, action in actions})
    return TrafficHistory(
        days=days,
        decisions=tuple(sum(actions[day, action] for action in every) for day in days),
        by_action={action: tuple(actions[day, action] for day in days) for action in every},
        reviews=tuple(reviews[day] for day in days),
        errors=tuple(errors[day] for day in days),
        changes=_changes(days[0], used, thresholds),
        bundles=_names("bundle", used),
        policies=_names("policy", used),
    )


def _names(kind: str, used: Mapping[tuple[str, str], Counter[date]]) -> tuple[str, ...]:
    """Return what decided, in the order of the first days."""
    found = [(min(days), name) for (of, name), days in used.items() if of == kind]
    return tuple(name for _, name in sorted(found))


def _counts(day: pa.Array, values: pa.Array, *, only: object = None) -> dict[tuple[date, Any], int]:
    """Count pairs of a day and a value; ``only``: those of one value."""
    if only is not None:
        chosen = pc.equal(values, pa.scalar(only))
        day, values = day.filter(chosen), values.filter(chosen)
    table = pa.table({"day": day, "value": values}).group_by(["day", "value"]).aggregate([([], "count_all")])
    return {(row["day"], row["value"]): row["count_all"] for row in table.to_pylist()}


def _add_thresholds(thresholds: dict[tuple[str, str], dict[date, set[float]]], day: pa.Array, reasons: pa.Array) -> None:
    """Add the thresholds of each label and action by day."""
    flat, parents = pc.list_flatten(reasons), pc.list_parent_indices(reasons)
    if not len(flat):
        return
    table = pa.table(
        {"day": day.take(parents), **{name: pc.struct_field(flat, name) for name in ("label", "action", "threshold")}}
    )
    for row in table.group_by(["day", "label", "action", "threshold"]).aggregate([]).to_pylist():
        thresholds[row["label"], row["action"]][row["day"]].add(round(row["threshold"], 6))


def _changes(
    first: date, used: Mapping[tuple[str, str], Counter[date]], thresholds: Mapping[tuple[str, str], Mapping[date, set[float]]]
) -> tuple[Change, ...]:
    """Return what is used later for the first time, or with another threshold than on the last day before."""
    changes = [
        Change(day, "model" if kind == "bundle" else "policy", f"{value[:12] if kind == 'bundle' else value} decides")
        for (kind, value), days in used.items()
        if (day := min(days)) > first
    ]
    # A policy has several thresholds for a label and action where it tells presence patterns apart; the set of a day's may lack
    # some for want of such items, so only values that were never used before count.
    for (label, action), by_day in thresholds.items():
        known: set[float] = set()
        for day in sorted(by_day):
            if known and (new := by_day[day] - known):
                changes.append(
                    Change(day, "threshold", f"{action} of {label} from {', '.join(f'{value:g}' for value in sorted(new))}")
                )
            known |= by_day[day]
    return tuple(sorted(changes, key=lambda of: (of.day, of.what, of.text)))
