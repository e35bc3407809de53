"""Targets that are probably wrong: confident learning (Northcutt, Jiang and Chuang 2021) for each label, with unknown targets.

Example:
    >>> found = confident_learning(targets_N, probabilities_N)
    >>> found.suspected_N.sum(), found.wrong_positives
    (41, 0.12)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vigil_evaluation.metrics import Floats
from vigil_monitoring.queues.queue import COLUMNS, Queue, QueueRecord, queue_table

TRAIN = "train"


@dataclass(frozen=True, slots=True)
class ConfidentLearning:
    """Suspected errors of one label's targets.

    Attributes:
        suspected_N: whether the model confidently contradicts the target.
        quality_N: probability of the given target, NaN where it is unknown; lowest first is the order of suspicion.
        known: number of known targets.
        wrong_positives: estimated share of the positive targets that are negative in truth; ``None`` without positive targets.
        wrong_negatives: estimated share of the negative targets that are positive in truth; ``None`` without negative targets.
    """

    suspected_N: NDArray[np.bool_]
    quality_N: Floats
    known: int
    wrong_positives: float | None
    wrong_negatives: float | None


def confident_learning(targets_N: Floats, probabilities_N: Floats) -> ConfidentLearning:
    """Find targets that out-of-fold probabilities contradict.

    Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (2021), section 3: an item is
    confidently of a class if its probability is at least the mean probability of that class among the items with this target;
    where both classes qualify, the more probable one counts. Items whose confident class is not their target are suspected if
    the target is also the less probable class (as in cleanlab). The shares of wrong targets are those of the confident joint.

    Args:
        targets_N: targets in [0, 1], ``[N]``, NaN where unknown; at least 0.5 is positive. Unknown ones count nowhere.
        probabilities_N: probability that each item is positive, ``[N]``, by a model that was not trained on the item.
    """
    known_N = ~(np.isnan(targets_N) | np.isnan(probabilities_N))
    given_K = (targets_N[known_N] >= 0.5).astype(np.int64)
    probability_K2 = np.stack([1 - probabilities_N[known_N], probabilities_N[known_N]], axis=1)
    quality_N = np.full(len(targets_N), np.nan)
    quality_N[known_N] = probability_K2[np.arange(len(given_K)), given_K]
    suspected_N = np.zeros(len(targets_N), np.bool_)
    rates: list[float | None] = [None, None]
    counts = np.bincount(given_K, minlength=2)
    if counts.all():
        threshold_2 = np.array([probability_K2[given_K == k, k].mean() for k in (0, 1)])
        over_K2 = probability_K2 >= threshold_2
        confident_K = np.where(over_K2, probability_K2, -1.0).argmax(1)
        counted_K = over_K2.any(1)
        suspected_N[known_N] = counted_K & (confident_K != given_K) & (quality_N[known_N] < 0.5)
        joint_22 = np.zeros((2, 2))
        np.add.at(joint_22, (given_K[counted_K], confident_K[counted_K]), 1)
        rates = [float(joint_22[k, 1 - k] / joint_22[k].sum()) if joint_22[k].sum() else 0.0 for k in (0, 1)]
    return ConfidentLearning(suspected_N, quality_N, len(given_K), rates[1], rates[0])


class Suspect(NamedTuple):
    """A target that is probably wrong.

    Attributes:
        id: the item.
        label: the label.
        target: its target.
        probability: the model's.
        quality: probability of the given target.
        row: row of the table.
    """

    id: str
    label: str
    target: float
    probability: float
    quality: float
    row: int


def suspected_targets(table: pa.Table, labels: Sequence[str]) -> tuple[dict[str, ConfidentLearning], list[Suspect]]:
    """Return the suspected errors of a predictions table, the least probable target first.

    Args:
        table: see :mod:`vigil_evaluation.predictions`; with ``id``.
        labels: labels with known targets.
    """
    found, suspects = {}, []
    ids = table["id"].to_pylist()
    for label in labels:
        targets_N, probabilities_N = (
            table[f"{kind}.{label}"].to_numpy().astype(np.float64) for kind in ("target", "probability")
        )
        found[label] = one = confident_learning(targets_N, probabilities_N)
        for row in np.flatnonzero(one.suspected_N).tolist():
            values = float(targets_N[row]), float(probabilities_N[row]), float(one.quality_N[row])
            suspects.append(Suspect(str(ids[row]), label, *values, row))
    return found, sorted(suspects, key=lambda of: (of.quality, of.id, of.label))


def held_out(table: pa.Table) -> tuple[str, str]:
    """Return whether the probabilities are of models that were not trained on the items, and why that is known.

    Returns:
        ``yes``, ``no`` or ``unstated``, and a sentence. A column ``fold`` states that each row's model was trained without its
        fold; a column ``split`` that the model was trained on the rows of ``train``.
    """
    if "fold" in table.column_names:
        return "yes", "the column fold states that each item was predicted by a model that was trained without it"
    if "split" not in table.column_names:
        return "unstated", "nothing states whether the model was trained on these items: there is no column fold or split"
    trained = sum(split == TRAIN for split in table["split"].to_pylist())
    if trained:
        return "no", f"{trained:,} of {len(table):,} items are of the split {TRAIN}, which the model was trained on"
    return "yes", f"no item is of the split {TRAIN}"


def suspects_queue(table: pa.Table, labels: Sequence[str], suspects: Sequence[Suspect]) -> Queue:
    """Return a queue that asks reviewers about the suspected targets, the most suspicious items first.

    Args:
        table: the predictions.
        labels: labels of the record.
        suspects: from :func:`suspected_targets`.
    """
    asked: dict[int, list[str]] = {}
    for of in suspects:
        asked.setdefault(of.row, []).append(of.label)
    columns = [name for name in table.column_names if name in _COPIED or name in {f"probability.{label}" for label in labels}]
    rows = [
        {**row, "id": str(row["id"]), "purpose": "mined", "ask": [label for label in labels if label in ask]}
        for row, ask in zip(table.select(columns).take(list(asked)).to_pylist(), asked.values(), strict=True)
    ]
    record = QueueRecord("non-probability", tuple(labels), budget=len(rows), method="suspected label errors", items=len(table))
    return Queue(queue_table(rows, labels), record)


_COPIED = [name for name, kind in COLUMNS.items() if kind == pa.string() and name not in ("stratum", "purpose")]
