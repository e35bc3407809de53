"""Differences of two models in every metric, label and slice, with replicates and sample sizes for the tests.

Where items have weights, metrics and replicates are weighted, and sample sizes are effective numbers of units (Kish 1965).
Changed decisions of the heaviest items may be rare and unobserved: a model that is worse on many light items, and better on as
many items that are represented by one heavy one, would look worse whenever that one is not in the sample. So tests and intervals
of decision metrics allow for one changed decision of the largest weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_evaluation.comparison.alignment import AlignedPredictions
from vigil_evaluation.metrics import Floats
from vigil_evaluation.slices.grouping import Grouping
from vigil_evaluation.specs import EvaluationSpec
from vigil_evaluation.stats.bootstrap import MetricParameters, Resampling, replicate
from vigil_evaluation.stats.intervals import MIN_DEFINED_SHARE, intervals

LOWER_IS_BETTER = ("false_positive_rate", "brier", "log_loss", "calibration_error")
"""Metrics whose smaller values are better."""

RANKING_METRICS = ("average_precision", "auroc", "partial_auroc", "recall_at_fpr", "recall_at_precision")
"""Metrics of the ranking, which need both classes."""

DECISION_METRICS = ("f1", "precision", "recall", "false_positive_rate", "accuracy")
"""Metrics of decisions at a threshold, which change only if a decision does."""

PSEUDO_CHANGES = 2.0
"""Pseudo-observations, one changed decision each way, in the interval of a decision metric (Agresti and Min 2005)."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PairedDifferences:
    """C cells, each a metric of a label (or the mean over labels) in a group of items.

    Attributes:
        metric_C: index of the metric.
        group_C: index of the group; the group of all items is the first.
        label_C: index of the label; -1 for the mean over labels.
        champion_C: estimate of the champion; NaN where undefined.
        challenger_C: estimate of the challenger.
        low_C: lower end of the interval of challenger minus champion; NaN where undefined.
        high_C: upper end.
        gains_C: challenger minus champion, signed so that more is better; NaN where the cell cannot be compared.
        errors_C: standard error of the gains; under weights, of decision metrics with one more change of the largest weight.
        samples_RC: replicates of the gains, float32.
        units_C: independent units behind a gain, effective ones under weights; of the rarer class, except for decision metrics.
        differing_C: units in which the models differ in a way that affects the metric.
        known_C: known targets.
        positive_C: known positives.
    """

    metric_C: Counts
    group_C: Counts
    label_C: Counts
    champion_C: Floats
    challenger_C: Floats
    low_C: Floats
    high_C: Floats
    gains_C: Floats
    errors_C: Floats
    samples_RC: NDArray[np.float32]
    units_C: Floats
    differing_C: Floats
    known_C: Counts
    positive_C: Counts


def paired_differences(
    aligned: AlignedPredictions,
    groupings: Sequence[Grouping],
    thresholds: tuple[Mapping[str, float], Mapping[str, float]],
    metrics: Sequence[str],
    *,
    resampling: Resampling,
    spec: EvaluationSpec,
) -> PairedDifferences:
    """Measure both models on the same items and the same replicates.

    Args:
        aligned: their aligned predictions.
        groupings: groupings of the rows; a group of all items is added before them.
        thresholds: thresholds of the champion and of the challenger.
        metrics: names of the metrics.
        resampling: resampling of the replicates, identical for both models.
        spec: settings of the metrics and intervals.
    """
    everything = np.zeros(len(aligned.targets_NL), np.int32)
    codes = [(everything, 1), *((grouping.codes_N, len(grouping.values)) for grouping in groupings)]
    sides = []
    for probabilities_NL, cuts in zip((aligned.champion_NL, aligned.challenger_NL), thresholds, strict=True):
        cuts_L = np.array([cuts[label] for label in aligned.labels])
        points = MetricParameters(spec.false_positive_rate, spec.precision, cuts_L)
        sides.append(
            replicate(
                *(aligned.targets_NL, probabilities_NL, codes, points, resampling, metrics),
                weights_N=aligned.weights_N,
                enough=max(spec.enough, 1),
                widened=False,
            )
        )
    champion, challenger = sides
    counted = _UnitCounts(aligned, codes, thresholds, resampling)
    parts = []
    for place, metric in enumerate(metrics):
        one, other = champion.estimates[metric], challenger.estimates[metric]
        drawn_RGL = challenger.samples.pop(metric) - champion.samples.pop(metric)
        comparable = ~np.isnan(one) & ~np.isnan(other) & ((~np.isnan(drawn_RGL)).mean(axis=0) >= MIN_DEFINED_SHARE)
        drawn_RGL = np.where(comparable, drawn_RGL, np.float32(np.nan))
        both = _MetricPair(
            one,
            other,
            drawn_RGL,
            comparable,
            *counted.of(metric),
            *counted.heaviest(metric),
            counted.widening(metric, spec.confidence),
        )
        parts.append(_of_metric(place, metric, both, spec.confidence))
    cells = {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
    known_GL, positive_GL = champion.known_GL, champion.positive_GL
    group, label = cells["group_C"], cells["label_C"]
    # The mean over labels has the targets of all of them.
    known = np.where(label >= 0, known_GL[group, label], known_GL.sum(axis=1)[group])
    positive = np.where(label >= 0, positive_GL[group, label], positive_GL.sum(axis=1)[group])
    return PairedDifferences(**cells, known_C=known, positive_C=positive)


class _UnitCounts:
    """Number of independent units of each kind, and in how many of them the models differ."""

    def __init__(
        self,
        aligned: AlignedPredictions,
        codes: Sequence[tuple[NDArray[np.int32], int]],
        thresholds: tuple[Mapping[str, float], Mapping[str, float]],
        resampling: Resampling,
    ) -> None:
        targets = aligned.targets_NL
        flagged, other_flagged = (
            probabilities >= np.array([cuts[label] for label in aligned.labels])
            for probabilities, cuts in zip((aligned.champion_NL, aligned.challenger_NL), thresholds, strict=True)
        )
        self._positive, self._negative = targets >= 0.5, targets < 0.5
        self._flagged = flagged | other_flagged
        self._flipped = flagged != other_flagged
        self._moved = aligned.champion_NL != aligned.challenger_NL
        units = np.arange(len(targets)) if resampling.clusters is None else resampling.clusters
        self._groupings = [_pairs(code, count, units) for code, count in codes]
        self._codes, self._weights_N = codes, aligned.weights_N
        self._held: dict[str, Floats] = {}

    def of(self, metric: str) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return the units of a metric, those in which the models differ, and whether any probability does, ``[G, L]`` each."""
        moved = self._count("moved")
        if metric not in DECISION_METRICS:
            # A model with higher scores loses a little on each item of one class and gains much on each of the other. With few
            # items of the rarer class, all differences may have one sign by chance, so the rarer class counts.
            units = self._rarer_units(None if self._weights_N is None else self._weights_N**2)
            return units, np.minimum(units, moved), moved > 0
        kind = _KINDS.get(metric, "known")
        return self._count(kind), self._count(f"{kind} flipped"), moved > 0

    def heaviest(self, metric: str) -> tuple[Floats, Floats]:
        """Return what one changed decision of the largest weight adds, ``[G, L]`` each.

        Returns:
            The variance that it adds to a difference beyond that of a usual one, and the number of units if all had that weight.
        """
        kind = _KINDS.get(metric, "known")
        units = self._count(kind)
        if self._weights_N is None or metric not in DECISION_METRICS:
            return np.zeros_like(units), units
        rows, flipped = self._mask(kind), self._mask(f"{kind} flipped")
        # Which class an item has is unknown before it is labelled.
        possible = rows if kind == "flagged" else self._mask("known")
        weights_N1, shape = self._weights_N[:, None], (0, rows.shape[1])
        total, largest, usual = np.empty(shape), np.empty(shape), np.empty(shape)
        for codes_N, groups in self._codes:
            sums = [_sums(codes_N, groups, mask * weights_N1**power) for mask, power in ((rows, 1), (flipped, 1), (flipped, 2))]
            most = np.zeros((groups, rows.shape[1]))
            np.maximum.at(most, codes_N[codes_N >= 0], (possible * weights_N1)[codes_N >= 0])
            total, largest = np.concatenate([total, sums[0]]), np.concatenate([largest, most])
            usual = np.concatenate([usual, np.where(sums[1] > 0, sums[2] / np.where(sums[1] > 0, sums[1], 1.0), most)])
        known = np.where(total > 0, total, 1.0)
        return np.maximum(largest**2 - usual**2, 0.0) / known**2, np.minimum(units, known / np.where(largest > 0, largest, 1.0))

    def widening(self, metric: str, confidence: float) -> Floats:
        """Return the factor by which the interval of a metric other than of decisions is wider under weights, ``[G, L]``.

        The variance of a difference is mostly that of the heaviest rows of the rarer class. Its degrees of freedom are those of a
        sum of variances proportional to the squared weights (Satterthwaite 1946), and the width is that of Student's interval.
        """
        if self._weights_N is None or metric in DECISION_METRICS:
            return np.ones_like(self._count("known"))
        few, many = (self._rarer_units(of) for of in (self._weights_N**2, None))
        return np.maximum(_student_width(few, confidence) / _student_width(many, confidence), 1.0)

    def _rarer_units(self, weights_N: Floats | None) -> Floats:
        """Return the effective number of units of the rarer class, ``[G, L]``."""
        positive, negative = (
            np.concatenate([_units(pairs, mask, weights_N) for pairs in self._groupings])
            for mask in (self._positive, self._negative)
        )
        return np.asarray(np.minimum(positive, negative), np.float64)

    def _mask(self, kind: str) -> NDArray[np.bool_]:
        first, *_ = kind.split()
        known = self._positive | self._negative
        mask: NDArray[np.bool_] = {
            "positive": self._positive,
            "negative": self._negative,
            "flagged": known & self._flagged,
            "either": self._positive | (known & self._flagged),
            "known": known,
            "moved": known & self._moved,
        }[first]
        return mask & self._flipped if kind.endswith("flipped") else mask

    def _count(self, kind: str) -> Floats:
        if kind not in self._held:
            mask = self._mask(kind)
            self._held[kind] = np.concatenate([_units(pairs, mask, self._weights_N) for pairs in self._groupings])
        return self._held[kind]


_KINDS = {"recall": "positive", "false_positive_rate": "negative", "precision": "flagged", "f1": "either"}
"""Rows behind a decision metric; those of known target behind the others."""


def _sums(codes_N: NDArray[np.int32], groups: int, values_NL: Floats) -> Floats:
    sums = [np.bincount(codes_N[codes_N >= 0], values_N[codes_N >= 0], groups) for values_N in values_NL.T]
    return np.stack(sums, axis=1)


def _pairs(codes_N: NDArray[np.int32], groups: int, units_N: NDArray[np.integer]) -> tuple[Counts, Counts, int]:
    """Return the index of each row's pair of group and unit, -1 for none; the group of each pair; the number of groups."""
    joint_N = codes_N.astype(np.int64) * (int(units_N.max(initial=0)) + 1) + units_N
    there = codes_N >= 0
    numbers_N = np.full(len(codes_N), -1, np.int64)
    _, first, numbers_N[there] = np.unique(joint_N[there], return_index=True, return_inverse=True)
    return numbers_N, codes_N[there][first].astype(np.int64), groups


def _units(pairs: tuple[Counts, Counts, int], mask_NL: NDArray[np.bool_], weights_N: Floats | None) -> Floats:
    """Return the number of units with at least one row of the mask in each group, ``[G, L]``.

    Under weights, their effective number, where a unit has the mean weight of its rows.
    """
    numbers_N, group_P, groups = pairs
    counts = np.zeros((groups, mask_NL.shape[1]))
    for label in range(mask_NL.shape[1]):
        held = np.zeros(len(group_P) + 1, bool)
        held[numbers_N[mask_NL[:, label]]] = True  # Rows without a group mark the last entry, which is not counted.
        counts[:, label] = np.bincount(group_P[held[:-1]], minlength=groups)
        if weights_N is not None:
            rows_N = mask_NL[:, label] & (numbers_N >= 0)
            sums, number = (np.bincount(numbers_N[rows_N], of, len(group_P)) for of in (weights_N[rows_N], None))
            mean_P = sums / np.maximum(number, 1)
            total, squares = (np.bincount(group_P, mean_P**power, groups) for power in (1, 2))
            counts[:, label] = np.where(squares > 0, total**2 / np.where(squares > 0, squares, 1.0), 0.0)
    return counts


class _MetricPair(NamedTuple):
    """One metric of both models, ``[G, L]`` each: estimates, replicates of the difference, and sample sizes."""

    champion: Floats
    challenger: Floats
    drawn_RGL: NDArray[np.float32]
    comparable: NDArray[np.bool_]
    units: Floats
    differing: Floats
    moved: NDArray[np.bool_]
    unseen: Floats
    heaviest: Floats
    widening: Floats


def _of_metric(place: int, metric: str, sides: _MetricPair, confidence: float) -> dict[str, NDArray[Any]]:
    """Return the cells of one metric: all groups and labels, then the means over labels."""
    shape = sides.champion.shape
    several = sides.comparable.sum(axis=1) > 1 if shape[1] > 1 else np.zeros(shape[0], bool)
    group, label = (places.ravel() for places in np.indices(shape))
    means = _means(sides)
    flat: dict[str, NDArray[Any]] = {
        "group_C": np.concatenate([group, np.flatnonzero(several)]),
        "label_C": np.concatenate([label, np.full(int(several.sum()), -1)]),
    }
    joined = {
        name: np.concatenate([getattr(sides, name).ravel(), getattr(means, name)[several]])
        for name in ("champion", "challenger", "units", "differing", "unseen", "heaviest", "widening")
    }
    flat |= {f"{name}_C": joined[name] for name in ("champion", "challenger", "units", "differing")}
    drawn = np.concatenate([sides.drawn_RGL.reshape(len(sides.drawn_RGL), -1), means.drawn_RGL[:, several]], axis=1)
    there = np.concatenate([sides.comparable.ravel(), np.ones(int(several.sum()), bool)])
    difference = np.where(there, flat["challenger_C"] - flat["champion_C"], np.nan)
    low, high = intervals(difference, drawn, confidence)
    errors = np.full(len(there), np.nan)
    errors[there] = np.nanstd(drawn[:, there].astype(np.float64), axis=0, ddof=1)
    if metric in DECISION_METRICS:
        moved = np.concatenate([sides.moved.ravel(), means.moved[several]])
        reach = np.where(moved, _reach(errors, joined["heaviest"], confidence), 0.0)
        low, high = np.maximum(np.minimum(low, difference - reach), -1.0), np.minimum(np.maximum(high, difference + reach), 1.0)
    if (joined["widening"] > 1).any():
        low, high = difference - joined["widening"] * (difference - low), difference + joined["widening"] * (high - difference)
        if metric != "log_loss":
            low, high = np.maximum(low, -1.0), np.minimum(high, 1.0)
    if joined["unseen"].any():
        errors = np.sqrt(errors**2 + joined["unseen"])
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return {
        "metric_C": np.full(len(there), place),
        **flat,
        "low_C": low,
        "high_C": high,
        "gains_C": sign * difference,
        "errors_C": errors,
        "samples_RC": np.float32(sign) * drawn,
    }


def _means(sides: _MetricPair) -> _MetricPair:
    """Return the means over the comparable labels, ``[G]`` each; units are effective numbers."""
    comparable, there = sides.comparable, ~np.isnan(sides.drawn_RGL)
    labels = np.maximum(comparable.sum(axis=1), 1)
    one, other = (np.where(comparable, values, 0.0).sum(axis=1) / labels for values in (sides.champion, sides.challenger))
    drawn_RG = np.where(there, sides.drawn_RGL, 0).sum(axis=2) / np.maximum(there.sum(axis=2), 1)
    # A mean whose variance comes from one label has no more effective units than that label (Satterthwaite 1946).
    spread = np.where(comparable, np.where(there, sides.drawn_RGL, 0).var(axis=0, dtype=np.float64), 0.0)
    effective = []
    for counts in (sides.units, sides.differing, sides.heaviest):
        shares = (spread**2 / np.maximum(counts, 1)).sum(axis=1)
        most = np.where(comparable, counts, 0).max(axis=1, initial=0)
        effective.append(np.where(shares > 0, spread.sum(axis=1) ** 2 / np.where(shares > 0, shares, 1), most))
    some, moved = (np.asarray(which.any(axis=1)) for which in (comparable, sides.moved & comparable))
    unseen = np.where(comparable, sides.unseen, 0.0).sum(axis=1) / labels**2
    widening = np.where(comparable, sides.widening, 1.0).max(axis=1, initial=1.0)
    drawn = drawn_RG.astype(np.float32)
    return _MetricPair(one, other, drawn, some, effective[0], effective[1], moved, unseen, effective[2], widening)


def _student_width(units: Floats, confidence: float) -> Floats:
    """Return half the width of Student's interval of a mean of some units, in standard errors of a bootstrap."""
    from scipy.special import stdtrit

    many = np.maximum(units, 2.0)
    return np.asarray(stdtrit(many - 1, 0.5 + confidence / 2) * np.sqrt(many / (many - 1)), np.float64)


def _reach(errors: Floats, units: Floats, confidence: float) -> Floats:
    """Return the smallest half-width of an interval: as if one more decision had changed each way."""
    from scipy.special import ndtri

    return np.asarray(
        ndtri(0.5 + confidence / 2) * np.sqrt(errors**2 + PSEUDO_CHANGES / (units + PSEUDO_CHANGES) ** 2), np.float64
    )


def required_targets(metric: str) -> str:
    """Return which known targets a metric needs."""
    if metric in (*RANKING_METRICS, "f1", "precision"):
        return "positives and negatives"
    return {"recall": "positives", "false_positive_rate": "negatives"}.get(metric, "known targets")
