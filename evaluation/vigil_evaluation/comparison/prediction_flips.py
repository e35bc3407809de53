"""Which decisions two models take differently, item by item, and whether that is for the better."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.comparison.alignment import AlignedPredictions
from vigil_evaluation.policy.compiled_policy import CompiledPolicy

MAX_LISTED_FLIPS = 50
"""How many flips the JSON and the page list: those with the largest change of probability."""

MAX_TEXT_CHARACTERS = 300
"""Characters of an item's text that are listed."""

CHANGES = ("right_to_wrong", "wrong_to_right", "unknown")


@dataclass(frozen=True, slots=True)
class LabelFlips:
    """Flipped decisions of one label.

    Attributes:
        items: whose decision differs.
        flagged: of them, those that the challenger flags and the champion does not.
        right_to_wrong: those that the champion decides rightly and the challenger wrongly.
        wrong_to_right: likewise the other way.
        unknown: those whose target is not known.
        p_value: of McNemar's exact test, two-sided, that as many flips are for the worse as for the better; ``None`` without
            flips of known targets. It takes items as independent and is not corrected for the number of labels.
    """

    items: int
    flagged: int
    right_to_wrong: int
    wrong_to_right: int
    unknown: int
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Flip:
    """One decision that differs.

    Attributes:
        id: of the item.
        label: whose decision it is.
        champion: its probability.
        challenger: its probability.
        flagged_by: ``champion`` or ``challenger``.
        target: ``None`` if not known.
        change: ``right_to_wrong``, ``wrong_to_right`` or ``unknown``.
        text: the beginning of the item's text, where the table has it.
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
    """How many items go from one action to another."""

    champion: str
    challenger: str
    items: int


@dataclass(frozen=True, slots=True)
class ActionFlips:
    """What the two compiled policies do to the items.

    Attributes:
        changed: items that get another action.
        review_changed: items that only one of the two has reviewed.
        changes: every pair of actions that occurs and differs, the most frequent first.
    """

    changed: int
    review_changed: int
    changes: list[ActionChange]


@dataclass(frozen=True, slots=True)
class PredictionFlips:
    """All decisions that differ.

    Attributes:
        items: with at least one.
        labels: label to its flips.
        actions: by the policies; ``None`` unless both carry one that speaks of no other labels than those compared.
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
    """Find every decision that two models take differently.

    Args:
        aligned: their predictions.
        thresholds: of the champion and the challenger.
        policies: likewise; actions are compared if both are given.

    Returns:
        The counts, and a table of all of them: a row for each label of an item whose decision differs, and one with ``label``
        null for an item that the policies treat differently.
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
        worse, better, unknown = (int(((change == kind) & (places == place)).sum()) for kind in range(3))
        flagged = int((by_challenger & (places == place)).sum())
        labels[label] = LabelFlips(worse + better + unknown, flagged, worse, better, unknown, mcnemar(worse, better))
    actions, action_rows = _actions(aligned, policies)
    table = pa.concat_tables([_table(aligned, rows, places, by_challenger, change), action_rows], promote_options="default")
    found = PredictionFlips(len(np.unique(rows)), labels, actions, _top(aligned, rows, places, by_challenger, change))
    return found, table


def mcnemar(worse: int, better: int) -> float | None:
    """Two-sided p-value of McNemar's exact test: that flips go either way with the same chance.

    Args:
        worse: flips from right to wrong.
        better: flips from wrong to right.

    Returns:
        ``None`` without flips.
    """
    from scipy.stats import binomtest

    return float(binomtest(worse, worse + better).pvalue) if worse + better else None


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
    """What the policies do differently, and a row for each such item."""
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
    whole = " ".join(part for part in text if part) if isinstance(text, list) else text
    return whole if whole is None or len(whole) <= MAX_TEXT_CHARACTERS else whole[:MAX_TEXT_CHARACTERS] + "…"
