"""Measures: the decisions of a period that restrict something, by models and by people, each counted once."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.progress import ProgressCallback
from vigil_monitoring.traffic import Traffic
from vigil_monitoring.transparency.mapping import TransparencyMapping
from vigil_monitoring.transparency.people import HumanMeasure, Means, Origin

COLUMNS = ("id", "time", "action", "reasons", "content_type", "language", "presence", "bundle", "policy")


class Measure(NamedTuple):
    """A restriction of one item.

    Attributes:
        id: the item.
        time: when it was imposed, UTC.
        label: the label on whose ground: the decisive one.
        action: the action.
        means: ``automated`` if a model's policy decided, ``human`` if a person did.
        detected_by: who found the item.
        origin: what led to it.
        content_type: the item's content type; ``None`` if unknown.
        presence: the modalities that are present, such as ``text+image``; ``None`` if unknown.
        language: the item's language; ``None`` if unknown.
        posted: when the item was posted; ``None`` if unknown.
        probability: the model's calibrated probability of the label; ``None`` for a person's measure, as the next four.
        threshold: the threshold that it reaches.
        also: other labels that reach a threshold of the policy.
        bundle: hash of the model.
        policy: name and version of the policy.
    """

    id: str
    time: datetime
    label: str
    action: str
    means: Means
    detected_by: Means
    origin: Origin
    content_type: str | None
    presence: str | None
    language: str | None
    posted: datetime | None
    probability: float | None = None
    threshold: float | None = None
    also: tuple[str, ...] = ()
    bundle: str | None = None
    policy: str | None = None


def measures(
    traffic: Traffic,
    mapping: TransparencyMapping,
    by_people: Sequence[HumanMeasure] = (),
    progress: ProgressCallback | None = None,
) -> Iterator[Measure]:
    """Yield the measures of the traffic's period: a model's in the order of the traffic, then those that people took.

    The same action on the same item counts once: an item that is scored again is not restricted again, and a person who confirms
    what the model did takes no further measure. Memory grows by 8 bytes for each measure, not with the traffic.

    Args:
        traffic: the decisions, of role live.
        mapping: which actions restrict something.
        by_people: measures that people took; what they leave open is looked up in the traffic.
        progress: shows the decisions read so far.

    Raises:
        UserError: if the traffic has no actions, or an action or decisive label is not mapped.
    """
    posted = mapping.posted
    if posted is not None and posted not in traffic.columns:
        raise UserError(
            f"{traffic.path}: has no column {posted}, which the mapping {mapping.name} names as the time of posting; log it with "
            f"--log-column {posted}, or change `posted`"
        )
    columns = list(dict.fromkeys([*COLUMNS, *([posted] if posted else [])]))
    restricting = pa.array([name for name, action in mapping.actions.items() if action.restricts], pa.string())
    of_people = pa.array(sorted({measure.id for measure in by_people}), pa.string())
    seen, items, decided, done = _Seen(), dict[str, _Item](), 0, 0
    for batch in traffic.batches(columns):
        done += batch.num_rows
        if progress is not None:
            progress("reading decisions", done, traffic.rows)
        decided += batch.num_rows - batch["action"].null_count
        mapping.check(str(traffic.path), _distinct(batch["action"]), ())
        if len(of_people):
            for row in batch.filter(pc.is_in(batch["id"], of_people)).to_pylist():
                items.setdefault(row["id"], _item(row, posted))
        rows = batch.filter(pc.is_in(batch["action"], restricting)).to_pylist()
        if unexplained := [row["id"] for row in rows if not row["reasons"]]:
            raise UserError(f"{traffic.path}: item {unexplained[0]} has an action without reasons; a measure needs its label")
        mapping.check(str(traffic.path), (), {row["reasons"][0]["label"] for row in rows})
        fresh = seen.first([(row["id"], row["action"]) for row in rows])
        for row in (rows[place] for place in np.flatnonzero(fresh).tolist()):
            reason = row["reasons"][0]
            yield Measure(
                row["id"], row["time"], reason["label"], row["action"], "automated", "automated", "own initiative",
                *_item(row, posted), reason["probability"], reason["threshold"],
                tuple(dict.fromkeys(of["label"] for of in row["reasons"][1:] if of["label"] != reason["label"])),
                row["bundle"], row["policy"],
            )  # fmt: skip
    if not decided:
        raise UserError(f"{traffic.path}: no decision has an action; serve or score with a policy, so that there are measures")
    fresh = seen.first([(measure.id, measure.action) for measure in by_people])
    for of in (by_people[place] for place in np.flatnonzero(fresh).tolist()):
        known = items.get(of.id, _Item(None, None, None, None))
        yield Measure(
            of.id, of.time, of.label, of.action, "human", of.detected_by, of.origin, of.content_type or known.content_type,
            known.presence, of.language or known.language, of.posted or known.posted,
        )  # fmt: skip


class _Item(NamedTuple):
    content_type: str | None
    presence: str | None
    language: str | None
    posted: datetime | None


def _item(row: dict[str, object], posted: str | None) -> _Item:
    """Return what a measure states of its item."""
    moment = None if posted is None else row[posted]
    if moment is not None and not isinstance(moment, datetime):
        try:
            moment = datetime.fromisoformat(str(moment))
        except ValueError:
            raise UserError(
                f"item {row['id']}: {posted} is {str(moment)[:40]!r}, not a time such as 2026-11-24T18:30:00Z"
            ) from None
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    kind, presence, language = (None if row[of] is None else str(row[of]) for of in ("content_type", "presence", "language"))
    return _Item(kind, presence, language, moment)


def _distinct(column: pa.Array) -> list[str]:
    return [value for value in pc.unique(column).to_pylist() if value is not None]


class _Seen:
    """Set of keys as sorted runs of their 64-bit hashes, which are merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def first(self, keys: Sequence[tuple[str, str]]) -> NDArray[np.bool_]:
        """Return which keys occur for the first time, and add them."""
        hashes, place = np.unique(np.fromiter(map(hash, keys), np.int64, len(keys)), return_index=True)
        new = np.ones(len(hashes), bool)
        for run in self._runs:
            new &= run[np.minimum(np.searchsorted(run, hashes), len(run) - 1)] != hashes
        if new.any():
            self._runs.append(hashes[new])
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            self._runs.append(np.sort(np.concatenate([self._runs.pop(), self._runs.pop()])))
        first = np.zeros(len(keys), bool)
        first[place[new]] = True
        return first
