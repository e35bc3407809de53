"""Prediction flips: decisions that differ between two models, and whether they improve."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.comparison.alignment import AlignedPredictions
from vigil_evaluation.metrics import Floats
from vigil_evaluation.policy.compiled_policy import CompiledPolicy

MAX_LISTED_FLIPS = 50
"""Most flips in the JSON and the report: those with the largest change of probability."""

MAX_TEXT_CHARACTERS = 300
"""Listed characters of an item's text."""

CHANGES = ("right_to_wrong", "wrong_to_right", "unknown")


@dataclass(frozen=True, slots=True)
class LabelFlips:
    """Flipped decisions of one label.

    Attributes:
        items: items whose decision differs.
        flagged: items that only the challenger flags.
        right_to_wrong: items that only the champion decides correctly.
        wrong_to_right: items that only the challenger decides correctly.
        unknown: items of unknown target.
        p_value: two-sided p-value of McNemar's exact test that as many flips are for the worse as for the better; ``None``
            without flips of known targets. It assumes independent items and is not corrected for the number of labels. If items
            have weights, it is that test of effective numbers of flips, see :func:`effective_flips`.
    """

    items: int
    flagged: int
    right_to_wrong: int
    wrong_to_right: int
    unknown: int
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Flip:
    """A decision that differs.

    Attributes:
        id: id of the item.
        label: the label.
        champion: probability of the champion.
        challenger: probability of the challenger.
        flagged_by: ``champion`` or ``challenger``.
        target: the target; ``None`` if unknown.
        change: ``right_to_wrong``, ``wrong_to_right`` or ``unknown``.
        text: beginning of the item's text, if the table has it.
    """

    id: str
    label: str
    champion: float
    challenger: float
    flagged_by: str
    target: float | None
    change: str
    text: str | None


@dataclass(frozen=True, slots=True)
class ActionChange:
    """Number of items that change from one action to another."""

    champion: str
    challenger: str
    items: int


@dataclass(frozen=True, slots=True)
class ActionFlips:
    """Actions that differ between two compiled policies.

    Attributes:
        changed: items that get another action.
        review_changed: items that only one of the two sends to review.
        changes: every pair of differing actions, the most frequent first.
    """

    changed: int
    review_changed: int
    changes: list[ActionChange]


@dataclass(frozen=True, slots=True)
class PredictionFlips:
    """All decisions that differ.

    Attributes:
        items: items with at least one flip.
        labels: label to its flips.
        actions: differing actions; ``None`` unless both have a policy with no other labels than those compared.
        top: the flips with the largest change of probability.
    """

    items: int
    labels: dict[str, LabelFlips]
    actions: ActionFlips | None
    top: list[Flip]


def find_flips(
    aligned: AlignedPredictions,
    thresholds: tuple[Mapping[str, float], Mapping[str, float]],
    policies: tuple[CompiledPolicy | None, CompiledPolicy | None] = (None, None),
) -> tuple[PredictionFlips, pa.Table]:
    """Find every decision that differs between two models.

    Args:
        aligned: their aligned predictions.
        thresholds: thresholds of the champion and the challenger.
        policies: policies of the champion and the challenger; actions are compared if both are given.

    Returns:
        The counts, and a table of all flips: a row for each label of an item whose decision differs, and one with a null
        ``label`` for each item whose action differs.
    """
    first, second = (
        probabilities >= np.array([cuts[label] for label in aligned.labels])
        for probabilities, cuts in zip((aligned.champion_NL, aligned.challenger_NL), thresholds, strict=True)
    )
    rows, places = np.nonzero(first != second)
    by_challenger, targets = second[rows, places], aligned.targets_NL[rows, places]
    change = np.where(np.isnan(targets), 2, np.where((targets >= 0.5) == by_challenger, 1, 0))
    labels = {}
    for place, label in enumerate(aligned.labels):
        of_label = places == place
        worse, better, unknown = (int(((change == kind) & of_label).sum()) for kind in range(3))
        flagged, numbers = int((by_challenger & of_label).sum()), (float(worse), float(better))
        if aligned.weights_N is not None:
            known_N = ~np.isnan(aligned.targets_NL[:, place])
            one, other = (aligned.weights_N[rows[of_label & (change == kind)]] for kind in range(2))
            numbers = effective_flips(one, other, float(aligned.weights_N[known_N].max(initial=0.0)))
        labels[label] = LabelFlips(worse + better + unknown, flagged, worse, better, unknown, mcnemar(*numbers))
    actions, action_rows = _actions(aligned, policies)
    table = pa.concat_tables([_table(aligned, rows, places, by_challenger, change), action_rows], promote_options="default")
    found = PredictionFlips(len(np.unique(rows)), labels, actions, _top(aligned, rows, places, by_challenger, change))
    return found, table


def mcnemar(worse: float, better: float) -> float | None:
    """Return the two-sided p-value of McNemar's exact test: that flips in both directions are equally likely.

    Args:
        worse: flips from right to wrong; may be an effective, fractional number.
        better: flips from wrong to right.

    Returns:
        The p-value; ``None`` without flips.
    """
    from scipy.special import betainc

    total, fewer = worse + better, min(worse, better)
    return min(1.0, 2 * float(betainc(total - fewer, fewer + 1, 0.5))) if total else None


def effective_flips(worse: Floats, better: Floats, largest: float) -> tuple[float, float]:
    """Return the effective numbers of flips for the worse and for the better (Kish 1965).

    Flips of the heaviest items may be rare and unobserved, so the variance of the flips includes that of one flip of the largest
    weight instead of a usual one.

    Args:
        worse: weights of the flips for the worse.
        better: weights of the flips for the better.
        largest: largest weight of an item of known target.
    """
    total, squares = float(worse.sum() + better.sum()), float((worse**2).sum() + (better**2).sum())
    if not total:
        return 0.0, 0.0
    each = total / (squares + max(largest**2 - (squares / total) ** 2, 0.0))
    return float(worse.sum()) * each, float(better.sum()) * each


def _table(
    aligned: AlignedPredictions,
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    by_challenger: NDArray[np.bool_],
    change: NDArray[np.int64],
) -> pa.Table:
    targets = aligned.targets_NL[rows, places]
    taken = aligned.table.take(pa.array(rows))
    made = {
        "id": taken.column("id"),
        "label": pa.array(np.array(aligned.labels, object)[places], pa.string()),
        "champion": pa.array(np.where(by_challenger, "clear", "flagged"), pa.string()),
        "challenger": pa.array(np.where(by_challenger, "flagged", "clear"), pa.string()),
        "champion_probability": pa.array(aligned.champion_NL[rows, places], pa.float64()),
        "challenger_probability": pa.array(aligned.challenger_NL[rows, places], pa.float64()),
        "target": pa.array(targets, pa.float64(), mask=np.isnan(targets)),
        "change": pa.array(np.array(CHANGES, object)[change], pa.string()),
    }
    return pa.table(made | {name: taken.column(name) for name in taken.column_names if name not in made})


def _actions(
    aligned: AlignedPredictions, policies: tuple[CompiledPolicy | None, CompiledPolicy | None]
) -> tuple[ActionFlips | None, pa.Table]:
    """Return the differing actions, and a row for each such item."""
    first, second = policies
    nothing = aligned.table.select(["id"]).slice(0, 0)
    if first is None or second is None or not {*first.labels, *second.labels} <= set(aligned.labels):
        return None, nothing
    table = aligned.table
    presence, market = (table.column(name).to_pylist() if name in table.column_names else None for name in ("presence", "market"))
    taken = [
        policy.decide_codes(probabilities_NL, aligned.labels, presence, market)
        for policy, probabilities_NL in ((first, aligned.champion_NL), (second, aligned.challenger_NL))
    ]
    names = [np.array(policy.actions, object)[codes.actions_N] for policy, codes in zip((first, second), taken, strict=True)]
    rows = np.flatnonzero(names[0] != names[1])
    pairs, counts = np.unique(np.array([names[0][rows], names[1][rows]], str), axis=1, return_counts=True)
    changes = [
        ActionChange(str(pairs[0, i]), str(pairs[1, i]), int(counts[i])) for i in np.argsort(-counts, kind="stable").tolist()
    ]
    at = table.take(pa.array(rows))
    made = {
        "id": at.column("id"),
        "label": pa.nulls(len(rows), pa.string()),
        "champion": pa.array(names[0][rows], pa.string()),
        "challenger": pa.array(names[1][rows], pa.string()),
    }
    others = {name: at.column(name) for name in at.column_names if name not in made}
    reviewed = int((taken[0].review_N != taken[1].review_N).sum())
    return ActionFlips(len(rows), reviewed, changes), pa.table(made | others)


def _top(
    aligned: AlignedPredictions,
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    by_challenger: NDArray[np.bool_],
    change: NDArray[np.int64],
) -> list[Flip]:
    moved = np.abs(aligned.challenger_NL[rows, places] - aligned.champion_NL[rows, places])
    order = np.argsort(-moved, kind="stable")[:MAX_LISTED_FLIPS]
    texts = aligned.table.column("text") if "text" in aligned.table.column_names else None
    found = []
    for flip in order.tolist():
        row, place = int(rows[flip]), int(places[flip])
        target = float(aligned.targets_NL[row, place])
        found.append(
            Flip(
                id=str(aligned.table.column("id")[row]),
                label=aligned.labels[place],
                champion=float(aligned.champion_NL[row, place]),
                challenger=float(aligned.challenger_NL[row, place]),
                flagged_by="challenger" if by_challenger[flip] else "champion",
                target=None if np.isnan(target) else target,
                change=CHANGES[int(change[flip])],
                text=None if texts is None else _beginning(texts[row].as_py()),
            )
        )
    return found


def _beginning(text: str | list[str | None] | None) -> str | None:
    complete = " ".join(part for part in text if part) if isinstance(text, list) else text
    return complete if complete is None or len(complete) <= MAX_TEXT_CHARACTERS else complete[:MAX_TEXT_CHARACTERS] + "…"
