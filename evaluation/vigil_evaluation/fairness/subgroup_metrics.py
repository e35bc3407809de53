"""Metrics of items about one group of people, compared with all other items, for every group at once."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.progress import ProgressCallback
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.fairness import subgroup_kernels as kernels
from vigil_evaluation.fairness.identity_columns import IdentityGroups
from vigil_evaluation.fairness.results import POWER, FairnessResults, Subgroup, SubgroupMetrics
from vigil_evaluation.metrics import Floats
from vigil_evaluation.stats.bootstrap import in_blocks, widen
from vigil_evaluation.stats.bootstrap_kernels import LANES
from vigil_evaluation.stats.intervals import Interval, intervals

AREAS = ("subgroup_auc", "bpsn_auc", "bnsp_auc")


class _LabelEstimates(NamedTuple):
    """Counts, estimates and interval ends of one label for the S groups of a column, ``[S]`` each."""

    known: Floats
    positive: Floats
    metrics: dict[str, tuple[Floats, Floats, Floats]]


def measure_fairness(
    data: EvaluationData, overall_auroc: Mapping[str, float | None], progress: ProgressCallback
) -> FairnessResults:
    """Compare every subgroup of the identity columns with its background.

    Args:
        data: the parsed predictions table.
        overall_auroc: label to its AUROC over all items.
        progress: called with each task.
    """
    subgroups = []
    for identity in data.identities:
        progress(f"fairness by {identity.column}: {len(identity.values)} groups", 0, None)
        by_label = dict(zip(data.thresholds, _measure_labels(data, identity), strict=True))
        items = np.bincount(identity.groups_M, minlength=len(identity.values))
        subgroups += [
            Subgroup(identity.column, value, int(items[s]), {label: _subgroup(n, s) for label, n in by_label.items()})
            for s, value in enumerate(identity.values)
        ]
    means = {
        label: {area: power_mean([getattr(group.labels[label], area) for group in subgroups]) for area in AREAS}
        for label in data.thresholds
    }
    scores = {label: _mean([overall_auroc[label], *areas.values()]) for label, areas in means.items()}
    left_out = {identity.column: identity.values_left_out for identity in data.identities if identity.values_left_out}
    return FairnessResults(subgroups, POWER, means, scores, list(data.absent_identities), left_out)


def power_mean(values: list[float | None], power: float = POWER) -> float | None:
    """Return the generalised mean of the defined values; 0 if one of them is 0, ``None`` without one."""
    defined = np.array([value for value in values if value is not None], np.float64)
    if not len(defined):
        return None
    return 0.0 if (defined == 0).any() else float(np.mean(defined**power) ** (1 / power))


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if len(defined) == len(values) else None


def _subgroup(found: _LabelEstimates, s: int) -> SubgroupMetrics:
    numbers = {name: [float(part[s]) for part in parts] for name, parts in found.metrics.items()}
    return SubgroupMetrics(
        known=int(found.known[s]),
        positive=int(found.positive[s]),
        **{name: None if np.isnan(estimate) else estimate for name, (estimate, _, _) in numbers.items()},
        intervals={name: Interval(low, high) for name, (_, low, high) in numbers.items() if not np.isnan(low)},
    )


def _measure_labels(data: EvaluationData, identity: IdentityGroups) -> list[_LabelEstimates]:
    """Return the metrics of each label."""
    ranked, resampling = [_ranked(data, identity, i) for i in range(len(data.thresholds))], data.resampling
    groups, lanes, labels, units = len(identity.values) + 1, LANES, len(ranked), data.units
    blocks = -(-resampling.replicates // lanes)
    sums_LRGX = np.empty((labels, blocks * lanes, groups, kernels.SUMS))

    def sample(block: int, weights_UB: NDArray[np.uint8], label: int) -> None:
        sums_GXB = np.empty((groups, kernels.SUMS, lanes))
        kernels.subgroup_sums(weights_UB, ranked[label], sums_GXB)
        sums_LRGX[label, block * lanes : (block + 1) * lanes] = np.moveaxis(sums_GXB, -1, 0)

    in_blocks(sample, labels, units, resampling)
    found = []
    for label in range(labels):
        once_GXB = np.empty((groups, kernels.SUMS, lanes))
        kernels.subgroup_sums(np.ones((units, lanes), np.uint8), ranked[label], once_GXB)
        counts = _counts(ranked[label], groups - 1)
        found.append(_of_sums(data, once_GXB[:, :, 0], sums_LRGX[label, : resampling.replicates], counts))
    return found


def _counts(ranked: kernels.RankedItems, groups: int) -> Floats:
    """Return sums of powers 0, 1 and 2 of the items' masses, ``[3, groups + 1, 2, 2]``, by positive and by flagged."""
    masses_K = np.ones(len(ranked.units_K)) if ranked.masses_K is None else ranked.masses_K
    kinds_K = 2 * ranked.positive_K.astype(np.int64) + ranked.flagged_K
    item_M = np.repeat(np.arange(len(kinds_K)), np.diff(ranked.starts))
    groups_A = np.concatenate([ranked.groups_M.astype(np.int64), np.full(len(kinds_K), groups)])
    item_A = np.concatenate([item_M, np.arange(len(kinds_K))])
    size = 4 * (groups + 1)
    powers = [np.bincount(4 * groups_A + kinds_K[item_A], masses_K[item_A] ** power, size) for power in range(3)]
    return np.asarray(np.stack(powers).reshape(3, groups + 1, 2, 2), np.float64)


def _effective(sums: Floats) -> Floats:
    """Return effective numbers (Kish 1965) from sums of the powers 0, 1 and 2 of masses; plain numbers if these are equal."""
    numbers, masses, squares = sums
    kish = masses**2 / np.where(squares > 0, squares, 1.0)
    return np.asarray(np.where(np.abs(kish - numbers) < 1e-6 * numbers, numbers, kish), np.float64)


def _unseen(counts: Floats, share: str, values: Floats) -> Floats:
    """Return the number of items behind a share of 0 or 1: a decision that was not seen counts as much as those like it weigh."""
    _, masses, squares = counts[:, :-1]
    side = 1 if share == "recall" else 0
    by_flag = squares.sum(axis=1) / np.maximum(masses.sum(axis=1), 1.0)
    unseen = np.where(values == 1, by_flag[:, 0], by_flag[:, 1])
    own = squares[:, side].sum(axis=1) / np.maximum(masses[:, side].sum(axis=1), 1.0)
    return np.asarray(masses[:, side].sum(axis=1) / np.maximum(np.maximum(own, unseen), 1.0))


def _of_sums(data: EvaluationData, once_GX: Floats, sums_RGX: Floats, counts: Floats) -> _LabelEstimates:
    """Return the metrics of a label from the kernel's sums over the items and over each replicate, and from :func:`_counts`."""
    estimates, samples = _derived(once_GX), _derived(sums_RGX)
    classes = counts.sum(axis=3)
    own, others = classes[:, :-1], classes[:, -1:] - classes[:, :-1]
    (negative, positive), (others_negative, others_positive) = (_effective(of).T for of in (own, others))
    needs = {
        "subgroup_auc": (positive, negative),
        "bpsn_auc": (others_positive, negative),
        "bnsp_auc": (positive, others_negative),
        "recall": (positive,),
        "recall_gap": (positive, others_positive),
        "false_positive_rate": (negative,),
        "false_positive_gap": (negative, others_negative),
    }
    numbers = {}
    for name, classes_needed in needs.items():
        fewest = np.minimum.reduce(classes_needed)
        shown = np.where(fewest >= data.spec.enough, estimates[name], np.nan)
        if not name.endswith("_gap"):
            units = _unseen(counts, name, shown) if name in {"recall", "false_positive_rate"} else fewest
            widen(shown, samples[name], units / _unit_size(data), data.resampling.seed)
        numbers[name] = (shown, *intervals(shown, samples[name], data.spec.confidence))
    return _LabelEstimates(own[0].sum(axis=1), own[0, :, 1], numbers)


def _unit_size(data: EvaluationData) -> float:
    """Return the mean number of items per unit."""
    clusters = data.resampling.clusters
    return 1.0 if clusters is None or not len(clusters) else len(clusters) / len(np.unique(clusters))


def _derived(sums: Floats) -> dict[str, Floats]:
    """Return metrics ``[..., S]``, NaN where undefined, from the sums of groups and, last, of all items ``[..., S + 1, 7]``."""
    groups, outside = sums[..., :-1, :], sums[..., -1:, :] - sums[..., :-1, :]
    positive, negative, within, others_positive, others_negative, hits, alarms = np.moveaxis(groups, -1, 0)
    rest_positive, rest_negative = outside[..., kernels.POSITIVES], outside[..., kernels.NEGATIVES]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, false_positive_rate = hits / positive, alarms / negative
        return {
            "subgroup_auc": within / (positive * negative),
            "bpsn_auc": (others_positive - within) / (rest_positive * negative),
            "bnsp_auc": (others_negative - within) / (positive * rest_negative),
            "recall": recall,
            "recall_gap": recall - outside[..., kernels.HITS] / rest_positive,
            "false_positive_rate": false_positive_rate,
            "false_positive_gap": false_positive_rate - outside[..., kernels.ALARMS] / rest_negative,
        }


def _ranked(data: EvaluationData, identity: IdentityGroups, label: int) -> kernels.RankedItems:
    """Return the items with known target and identity, by falling score, with their groups."""
    targets_N, scores_N = data.targets_NL[:, label], data.probabilities_NL[:, label]
    label_N = data.weights.label_N
    rows = np.flatnonzero(identity.known_N & ~np.isnan(targets_N) & (True if label_N is None else label_N > 0))
    rows = rows[np.argsort(-scores_N[rows], kind="stable")]
    scores_K = scores_N[rows]
    last = np.flatnonzero(np.append(scores_K[1:] != scores_K[:-1], np.ones(min(len(rows), 1), np.bool_))) + 1
    place_N = np.full(len(targets_N), -1, np.int64)
    place_N[rows] = np.arange(len(rows))
    place_M = place_N[identity.rows_M]
    order = np.argsort(place_M, kind="stable")[int((place_M < 0).sum()) :]
    clusters = data.resampling.clusters
    return kernels.RankedItems(
        (rows if clusters is None else clusters[rows]).astype(np.int32),
        targets_N[rows] >= 0.5,
        data.flagged_NL[rows, label],
        np.repeat(last, np.diff(last, prepend=0)).astype(np.int32),
        np.searchsorted(place_M[order], np.arange(len(rows) + 1)).astype(np.int32),
        identity.groups_M[order],
        # No metric depends on a common factor.
        None if label_N is None else label_N[rows] / label_N.min(initial=np.inf, where=label_N > 0),
    )
