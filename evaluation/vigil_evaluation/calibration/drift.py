"""Drift: compare the probabilities and modalities of unlabelled traffic with the calibration split.

Calibrators, conformal thresholds and policies hold for items from the distribution of the calibration split. Every bundle carries
a small reference of the split, and traffic is compared with it by Pearson's test of homogeneity over the bins of the reference.
A difference is reported if it is both significant and not negligible.

Rows that represent different numbers of items, such as a sample, count as the number of equally weighted items that would be as
precise, see :func:`effective_counts`.

Unlabelled items cannot show that the meaning of probabilities changed, such as when six in ten of the items at 0.3 become
positive. Labelled rows can; see :mod:`vigil_evaluation.calibration.conformal_coverage`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data import json_fields
from vigil_data.json_fields import Count, Fraction
from vigil_evaluation.calibration.conformal import ConformalThresholds, LabelConformalThresholds

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FALSE_ALARM_RATE = 0.01
"""Largest probability of any warning on traffic without drift."""

_LEVEL = FALSE_ALARM_RATE / 2
"""Level of all tests together; half the stated rate, because the tail of a statistic differs from that of its approximation."""

MIN_DISTANCE = 0.05
"""Smallest total variation distance for a warning, however significant, …"""

MIN_TAIL_RATIO = 1.25
"""… unless the fraction of items that reach the review threshold, or that score as positives do, changed by this factor."""

_BINS = 20
"""Bins of equal mass; the uppermost is halved repeatedly, since it contains the positives of rare labels."""

_MIN_ITEMS_IN_TAIL = 25
"""Fewest calibration items above the last edge."""

_MIN_REFERENCE_ITEMS, _MIN_EXPECTED_ITEMS = 25, 10
"""Bins are joined until each has this many items of the calibration split, and this many new ones are expected in it."""

_MIN_EXPECTED_PER_PATTERN = 5.0
"""Presence patterns with fewer expected items in either sample are joined."""


@dataclass(frozen=True, slots=True)
class LabelDriftReference:
    """Distribution of the calibrated probabilities of one label.

    Attributes:
        edges: bin edges, ascending, ``[B - 1]``; a probability belongs to the bin above the last edge that it reaches.
        counts: calibration items in each bin, ``[B]``; effective ones if rows have weights.
        review: lowest probability that is reviewed, one of the edges; ``None`` without one.
        upper: edge reached by as many items as there are positives, most sensitive to a change of these; ``None`` if unknown.
    """

    edges: list[Fraction]
    counts: list[Count]
    review: Fraction | None
    upper: Fraction | None


@dataclass(frozen=True, slots=True)
class DriftReference:
    """Summary of the calibration split, small enough for every bundle.

    Attributes:
        miss_rate: guarantee of the review thresholds.
        labels: label to the distribution of its probabilities, in the order of every ``[.., L]``.
        presence: presence pattern to its number of items; empty if unknown.
    """

    miss_rate: Fraction
    labels: Mapping[str, LabelDriftReference]
    presence: Mapping[str, Count]

    @classmethod
    def of(
        cls,
        probabilities_NL: ArrayLike,
        conformal: ConformalThresholds,
        presence_N: Sequence[str | None] | None = None,
        weights_N: ArrayLike | None = None,
        *,
        weights_NL: ArrayLike | None = None,
    ) -> "DriftReference":
        """Summarize the calibration split.

        Args:
            probabilities_NL: calibrated, of all items, of known and unknown target; NaN is ignored.
            conformal: conformal thresholds, which become edges, of the same labels.
            presence_N: modalities of each item.
            weights_N: number of items of traffic that each row represents, finite and at least 0; ``None`` for 1 each. Counts are
                then effective ones, see :func:`effective_counts`.
            weights_NL: the same for the probabilities of each label (default: ``weights_N``).
        """
        read_NL, weights = np.asarray(probabilities_NL, np.float32), _weights(weights_N)
        by_label = [weights] * read_NL.shape[1] if weights_NL is None else list(np.asarray(weights_NL, np.float64).T)
        labels = {
            name: _sketch(*_scored(read_NL[:, i], by_label[i]), label) for i, (name, label) in enumerate(conformal.labels.items())
        }
        return cls(conformal.miss_rate, labels, dict(sorted(_counted(presence_N, weights).items())))

    def ordered(self, labels: Sequence[str]) -> "DriftReference":
        """Return the same reference with labels in another order."""
        return replace(self, labels={label: self.labels[label] for label in labels})

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any, where: str = "reference") -> "DriftReference":
        """Read the JSON form.

        Raises:
            UserError: one line, if it is malformed.
        """
        read: DriftReference = json_fields.structure(cls, value, where)
        for name, label in read.labels.items():
            at = f"{where}.labels.{name}"
            if len(label.counts) != len(label.edges) + 1 or any(low >= high for low, high in pairwise(label.edges)):
                json_fields.wrong(at, "the edges must increase, and there must be one more count than edges")
            for key, edge in (("review", label.review), ("upper", label.upper)):
                if edge is not None and edge not in label.edges:
                    json_fields.wrong(f"{at}.{key}", "must be one of the edges")
        return read


@dataclass(frozen=True, slots=True)
class DriftTest:
    """Comparison of traffic with the calibration split.

    Attributes:
        items: items of the traffic; effective ones if rows have weights.
        statistic: Pearson's statistic of homogeneity.
        degrees: its degrees of freedom; 0 where there are too few items to compare.
        p_value: p-value of the statistic, combined with that of the fraction of items above ``upper``.
        adjusted_p: p-value corrected for all comparisons by Holm's method.
        distance: total variation distance, the smallest fraction of items that must have moved between bins.
        reviewed: fraction of the items that reach the review threshold; ``None`` without a threshold, and for presence.
        reviewed_before: that fraction on the calibration split.
        upper: fraction of the items that reach the edge ``upper`` of the reference; ``None`` without one, and for presence.
        upper_before: that fraction on the calibration split.
        warning: the guarantee that no longer holds, in one sentence; ``None`` if no drift was found.
    """

    items: int
    statistic: float
    degrees: int
    p_value: float
    adjusted_p: float
    distance: float
    reviewed: float | None
    reviewed_before: float | None
    upper: float | None
    upper_before: float | None
    warning: str | None


@dataclass(frozen=True, slots=True)
class DriftResults:
    """Comparisons of traffic with the calibration split.

    Attributes:
        labels: label to the comparison of its probabilities.
        presence: comparison of the presence patterns; ``None`` if they are unknown on either side.
    """

    labels: dict[str, DriftTest]
    presence: DriftTest | None

    @property
    def warnings(self) -> list[str]:
        """All warnings; empty if no drift was found."""
        tests = [*self.labels.values(), *([self.presence] if self.presence else [])]
        return [test.warning for test in tests if test.warning is not None]


def detect_drift(
    reference: DriftReference,
    probabilities_NL: ArrayLike,
    presence_N: Sequence[str | None] | None = None,
    weights_N: ArrayLike | None = None,
) -> DriftResults:
    """Compare unlabelled traffic with the calibration split.

    Args:
        reference: summary of the calibration split.
        probabilities_NL: calibrated by the same calibrators as the reference, one column per label; NaN is ignored.
        presence_N: modalities of each item.
        weights_N: number of items of traffic that each row represents, finite and at least 0; ``None`` for 1 each.

    Raises:
        ValueError: if the number of columns differs from the number of labels.
    """
    from vigil_evaluation.stats.multiple_testing import holm

    read_NL = np.asarray(probabilities_NL, np.float32)
    if read_NL.ndim != 2 or read_NL.shape[1] != len(reference.labels):
        raise ValueError(f"probabilities {read_NL.shape} must be [N, {len(reference.labels)}], one column for each label")
    tables, weights = {}, _weights(weights_N)
    for i, (name, label) in enumerate(reference.labels.items()):
        counts = _binned(*_scored(read_NL[:, i], weights), label.edges)
        tables[name] = np.array([label.counts, counts])
    patterns = _counted(presence_N, weights)
    names = sorted({*reference.presence, *patterns}) if reference.presence and patterns else []
    mixed = np.array([[counts.get(name, 0) for name in names] for counts in (reference.presence, patterns)], np.int64)
    tests = [_compared(table, reference.labels[name]) for name, table in tables.items()]
    tests += [homogeneity(_rare_joined(mixed))] if names else []
    adjusted = holm(np.array([test.p_value for test in tests]))
    labels = {
        name: _label_difference(name, reference, table, test, float(p))
        for (name, table), test, p in zip(tables.items(), tests, adjusted, strict=False)
    }
    presence = _presence_difference(names, reference, mixed, tests[-1], float(adjusted[-1])) if names else None
    return DriftResults(labels, presence)


def effective_counts(places_K: Integers, bins: int, weights_K: Floats | None = None) -> Integers:
    """Count items by bin; under weights, the effective number of items that have the same shares and are no more precise.

    That number is the smallest over the bins of the number of independent items whose share of the bin would vary as much as the
    weighted share does (Kish 1965), so that no test rejects more often than its level: in a review of all items with a high
    probability and a tenth of the others, about the number of the others.

    Args:
        places_K: bin of each item, from 0.
        bins: number of bins.
        weights_K: number of items of traffic that each represents, above 0; ``None`` for 1 each.
    """
    if weights_K is None or not len(places_K):
        return np.bincount(places_K, minlength=bins).astype(np.int64)
    total, squares = float(weights_K.sum()), float((weights_K**2).sum())
    masses_B, squares_B = (np.bincount(places_K, weights_K**power, bins) for power in (1, 2))
    share_B = masses_B / total
    # The linearised variance of each share (Cochran 1977, section 11.7).
    variance_B = (squares_B * (1 - 2 * share_B) + squares * share_B**2) / total**2
    some_B = (share_B > 0) & (share_B < 1 - 1e-12)
    effective = (share_B * (1 - share_B))[some_B] / variance_B[some_B]
    items = float(effective.min()) if len(effective) else total**2 / squares
    return np.asarray(np.rint(share_B * items), np.int64)


class HomogeneityTest(NamedTuple):
    """Pearson's statistic, its degrees of freedom, and its p-value."""

    statistic: float
    degrees: int
    p_value: float


def homogeneity(counts_2B: Integers) -> HomogeneityTest:
    """Test whether two samples have the same distribution over bins (Pearson).

    Args:
        counts_2B: items of each sample in each bin, no bin empty in both. With fewer than two bins or an empty sample the
            p-value is 1.
    """
    from scipy.special import chdtrc

    if counts_2B.shape[1] < 2 or not counts_2B.sum(axis=1).all():
        return HomogeneityTest(0.0, 0, 1.0)
    expected = counts_2B.sum(axis=1, keepdims=True) * (counts_2B.sum(axis=0) / counts_2B.sum())
    statistic = float(((counts_2B - expected) ** 2 / expected).sum())
    return HomogeneityTest(statistic, counts_2B.shape[1] - 1, float(chdtrc(counts_2B.shape[1] - 1, statistic)))


def _label_difference(
    name: str, reference: DriftReference, counts_2B: Integers, test: HomogeneityTest, adjusted_p: float
) -> DriftTest:
    label = reference.labels[name]
    (reviewed_before, reviewed), (upper_before, upper) = (
        _above(counts_2B, label.edges, edge) for edge in (label.review, label.upper)
    )
    distance = _distance(counts_2B)
    pairs = ((reviewed_before, reviewed), (upper_before, upper))
    apart = any(a is not None and b is not None and max(a, b) >= MIN_TAIL_RATIO * min(a, b) for a, b in pairs)
    warning = None
    if adjusted_p <= _LEVEL and (apart or distance >= MIN_DISTANCE):
        what = [f"at least {_percent(distance)} of the items have moved"]
        if upper is not None and upper_before is not None:
            what.append(f"{_percent(upper)} score as high as the top {_percent(upper_before)} did")
        if reviewed is not None and reviewed_before is not None:
            what.append(f"{_percent(reviewed)} reach the review threshold, {_percent(reviewed_before)} did")
        lost = f"the stated miss rate of {_percent(reference.miss_rate)} is not guaranteed on this traffic"
        if label.review is None:
            lost = "they may be miscalibrated on this traffic"
        warning = f"probabilities of {name} have drifted from the calibration split ({'; '.join(what)}): {lost}"
    items = int(counts_2B[1].sum())
    return DriftTest(items, *test, adjusted_p, distance, reviewed, reviewed_before, upper, upper_before, warning)


def _above(counts_2B: Integers, edges: Sequence[float], edge: float | None) -> tuple[float | None, float | None]:
    """Return the fraction of the calibration items, and of the new ones, that reach an edge."""
    if edge is None or not counts_2B.sum(axis=1).all():
        return None, None
    before, now = counts_2B[:, edges.index(edge) + 1 :].sum(axis=1) / counts_2B.sum(axis=1)
    return float(before), float(now)


def _presence_difference(
    names: Sequence[str], reference: DriftReference, counts_2P: Integers, test: HomogeneityTest, adjusted_p: float
) -> DriftTest:
    distance, warning = _distance(counts_2P), None
    if adjusted_p <= _LEVEL and distance >= MIN_DISTANCE:
        before_P, now_P = counts_2P / counts_2P.sum(axis=1, keepdims=True)
        most = int(np.argmax(np.abs(now_P - before_P)))
        what = f"{_percent(now_P[most])} of the items have {names[most]}, {_percent(before_P[most])} had"
        lost = f"the stated miss rate of {_percent(reference.miss_rate)} is not guaranteed on this traffic"
        warning = f"the mix of modalities has drifted from the calibration split ({what}): {lost}"
    return DriftTest(int(counts_2P[1].sum()), *test, adjusted_p, distance, None, None, None, None, warning)


def _sketch(read_K: NDArray[np.float32], weights_K: Floats | None, label: LabelConformalThresholds) -> LabelDriftReference:
    """Return bins of equal mass, the uppermost halved until few items are above it, with edges at ``review`` and ``upper``."""
    from vigil_evaluation.metrics.arrays import effective_items

    if not len(read_K):
        return LabelDriftReference([], [0], None, None)
    items = len(read_K) if weights_K is None else effective_items(weights_K)
    levels = [i / _BINS for i in range(1, _BINS)]
    while items * (1 - levels[-1]) / 2 >= _MIN_ITEMS_IN_TAIL:
        levels.append((1 + levels[-1]) / 2)
    edges = {float(edge) for edge in _quantiles(read_K, levels, weights_K)}
    upper = None
    if label.positive:
        share = max(label.prevalence, _MIN_ITEMS_IN_TAIL / items)
        upper = float(_quantiles(read_K, [max(1 - share, 0)], weights_K)[0])
    # An edge at the smallest value would make an empty bin below it.
    upper = upper if upper is not None and upper > read_K.min() else None
    given = {edge for edge in (label.review, upper) if edge is not None}
    ascending = sorted({edge for edge in edges if edge > read_K.min()} | given)
    return LabelDriftReference(ascending, _binned(read_K, weights_K, ascending).tolist(), label.review, upper)


def _quantiles(read_K: NDArray[np.float32], levels: Sequence[float], weights_K: Floats | None) -> NDArray[np.float32]:
    if weights_K is None:
        return np.asarray(np.quantile(read_K, levels, method="higher"))
    return np.asarray(np.quantile(read_K, levels, method="inverted_cdf", weights=weights_K))


def _weights(weights_N: ArrayLike | None) -> Floats | None:
    return None if weights_N is None else np.asarray(weights_N, np.float64)


def _scored(read_N: NDArray[np.float32], weights_N: Floats | None) -> tuple[NDArray[np.float32], Floats | None]:
    """Return the probabilities of the items that have one, and their weights."""
    scored_N = ~np.isnan(read_N)
    if weights_N is None:
        return read_N[scored_N], None
    scored_N &= weights_N > 0
    return read_N[scored_N], weights_N[scored_N]


def _binned(read_K: NDArray[np.float32], weights_K: Floats | None, edges: Sequence[float]) -> Integers:
    places = np.searchsorted(np.array(edges), read_K.astype(np.float64), side="right")
    return effective_counts(places, len(edges) + 1, weights_K)


def _over_bins(counts_2B: Integers) -> HomogeneityTest:
    """Test whether the new items are distributed over bins as the calibration items, whose quantiles are the edges.

    The probability of a bin between two quantiles of a sample of n is itself random, with a Dirichlet distribution, so counts of
    m new items vary (n + m) / n times as much as multinomial ones, and Pearson's statistic is divided by that.
    """
    from scipy.special import chdtrc

    before_B, now_B = _joined(counts_2B)
    if len(before_B) < 2:
        return HomogeneityTest(0.0, 0, 1.0)
    before, now = before_B.sum(), now_B.sum()
    expected_B = before_B * (now / before)
    statistic = float(((now_B - expected_B) ** 2 / expected_B).sum() * (before + 1) / (before + now))
    return HomogeneityTest(statistic, len(before_B) - 1, float(chdtrc(len(before_B) - 1, statistic)))


def _over_edge(counts_2B: Integers, place: int) -> float:
    """Return the p-value that equal fractions of the new and the calibration items lie above an edge, a quantile of the latter.

    With a of n calibration items above, the fraction of traffic there has a beta distribution with parameters a and n + 1 - a.
    """
    from scipy.stats import betabinom

    (before, now), (above_before, above) = counts_2B.sum(axis=1), counts_2B[:, place:].sum(axis=1)
    if not now or not 0 < above_before <= before:
        return 1.0
    chance = betabinom(now, above_before, before + 1 - above_before)
    return float(min(1.0, 2 * min(chance.cdf(above), chance.sf(above - 1))))


def _compared(counts_2B: Integers, label: LabelDriftReference) -> HomogeneityTest:
    """Test over all bins and over the edge ``upper``; the p-value is the smaller one, doubled."""
    test = _over_bins(counts_2B)
    if label.upper is None:
        return test
    return test._replace(p_value=min(1.0, 2 * min(test.p_value, _over_edge(counts_2B, label.edges.index(label.upper) + 1))))


def _joined(counts_2B: Integers) -> Integers:
    """Join neighbouring bins, from the uppermost down, until the reference alone expects enough items in each."""
    before, now = counts_2B.sum(axis=1)
    per_item = now / before if before else 0.0
    starts, items = [], 0
    for i in range(counts_2B.shape[1] - 1, -1, -1):
        items += int(counts_2B[0, i])
        if items >= _MIN_REFERENCE_ITEMS and items * per_item >= _MIN_EXPECTED_ITEMS:
            starts.append(i)
            items = 0
    if not starts:
        return counts_2B[:, :0]
    return np.add.reduceat(counts_2B, [0, *starts[-2::-1]], axis=1)


def _rare_joined(counts_2P: Integers) -> Integers:
    """Join the patterns with too few expected items, estimated from both samples, into one."""
    total_P, items = counts_2P.sum(axis=0), counts_2P.sum(axis=1)
    rare_P = total_P * (items.min() / items.sum()) < _MIN_EXPECTED_PER_PATTERN
    table = np.column_stack([counts_2P[:, ~rare_P], counts_2P[:, rare_P].sum(axis=1)])
    return table[:, table.sum(axis=0) > 0]


def _distance(counts_2B: Integers) -> float:
    if not counts_2B.sum(axis=1).all():
        return 0.0
    before_B, now_B = counts_2B / counts_2B.sum(axis=1, keepdims=True)
    return float(np.abs(now_B - before_B).sum() / 2)


def _counted(presence_N: Sequence[str | None] | None, weights_N: Floats | None) -> dict[str, int]:
    if presence_N is None:
        return {}
    if weights_N is None:
        return dict(Counter(str(pattern) for pattern in presence_N if pattern is not None))
    kept = [i for i, pattern in enumerate(presence_N) if pattern is not None and weights_N[i] > 0]
    names, places = np.unique([str(presence_N[i]) for i in kept], return_inverse=True)
    return dict(zip(names.tolist(), effective_counts(places, len(names), weights_N[kept]).tolist(), strict=True))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
