"""Is new traffic distributed as the calibration split was? Asked without labels, of probabilities and of the modalities present.

What is fitted on a calibration split (calibrators, conformal thresholds, policies) speaks of items that come from where those
items came from. A small sketch of the split goes into every bundle, and traffic is compared with it by Pearson's test of
homogeneity over the sketch's bins. A difference is reported if it is neither chance nor negligible.

What no unlabelled item can show is that the same probabilities mean something else: that of the items with 0.3 now six in ten are
positive. Labelled rows show that; see :mod:`vigil_evaluation.calibration.conformal_coverage`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data import json_fields
from vigil_evaluation.calibration.conformal import ConformalThresholds, LabelConformalThresholds

Integers = NDArray[np.int64]

FALSE_ALARM_RATE = 0.01
"""With traffic from where the calibration split came from, the chance of any warning at all is at most this."""

_LEVEL = FALSE_ALARM_RATE / 2
"""Of all tests together; half of what is stated, because the tail of a statistic is not quite that of its approximation."""

MIN_DISTANCE = 0.05
"""A share of the items that small may have moved between bins without a warning, however sure it is that they have …"""

MIN_TAIL_RATIO = 1.25
"""… unless the share of items that reach the review threshold, or that score as positives do, has changed by this factor."""

_LEVELS = 20
"""Bins of equal mass of which the uppermost is halved again and again: positives of rare labels are up there."""

_IN_TAIL = 25
"""Fewest calibration items above the last edge."""

_ENOUGH_BEFORE, _ENOUGH_NOW = 25, 10
"""Bins are joined until the calibration split has so many items in each, and so many of the new ones are expected there."""

_EXPECTED = 5.0
"""Patterns of presence of which fewer are expected in either sample are joined."""


@dataclass(frozen=True, slots=True)
class LabelDriftReference:
    """How the calibrated probabilities of one label were distributed.

    Attributes:
        edges: rising, ``[B - 1]``; a probability belongs to the bin above the last edge that it reaches.
        counts: calibration items in each bin, ``[B]``.
        review: the lowest probability that is reviewed, one of the edges; ``None`` without one.
        upper: the edge that as many items reach as there are positives, where a change of these shows most; ``None`` where that
            is not known.
    """

    edges: list[float]
    counts: list[int]
    review: float | None
    upper: float | None


@dataclass(frozen=True, slots=True)
class DriftReference:
    """A sketch of the calibration split, small enough for every bundle.

    Attributes:
        miss_rate: what the review thresholds guarantee.
        labels: label to the distribution of its probabilities, in the order of every ``[.., L]``.
        presence: pattern to how many items had it; empty if that was not known.
    """

    miss_rate: float
    labels: Mapping[str, LabelDriftReference]
    presence: Mapping[str, int]

    @classmethod
    def of(
        cls, probabilities_NL: ArrayLike, conformal: ConformalThresholds, presence_N: Sequence[str | None] | None = None
    ) -> "DriftReference":
        """Sketch the calibration split.

        Args:
            probabilities_NL: calibrated, of all its items, whether a target is known or not; NaN is left out.
            conformal: whose thresholds are edges of the sketch, and whose labels it is of.
            presence_N: of each item the modalities that it has.
        """
        read_NL = np.asarray(probabilities_NL, np.float32)
        labels = {
            name: _sketch(read_NL[:, i][~np.isnan(read_NL[:, i])], label)
            for i, (name, label) in enumerate(conformal.labels.items())
        }
        return cls(conformal.miss_rate, labels, dict(sorted(_counted(presence_N).items())))

    def ordered(self, labels: Sequence[str]) -> "DriftReference":
        """The same with labels in another order."""
        return replace(self, labels={label: self.labels[label] for label in labels})

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        labels = {
            name: {"edges": list(label.edges), "counts": list(label.counts), "review": label.review, "upper": label.upper}
            for name, label in self.labels.items()
        }
        return {"miss_rate": self.miss_rate, "labels": labels, "presence": dict(self.presence)}

    @classmethod
    def from_dict(cls, value: Any, where: str = "reference") -> "DriftReference":
        """Read what :meth:`to_dict` made.

        Raises:
            UserError: one line, if it is malformed.
        """
        read = json_fields.mapping(value, where, ("miss_rate", "labels", "presence"))
        labels = json_fields.mapping(read["labels"], f"{where}.labels")
        presence = json_fields.mapping(read["presence"], f"{where}.presence")
        return cls(
            json_fields.number(read["miss_rate"], f"{where}.miss_rate", 0, 1),
            {name: _label_reference(label, f"{where}.labels.{name}") for name, label in labels.items()},
            {pattern: json_fields.count(items, f"{where}.presence.{pattern}") for pattern, items in presence.items()},
        )


@dataclass(frozen=True, slots=True)
class DriftTest:
    """One comparison of traffic with the calibration split.

    Attributes:
        items: of the traffic.
        statistic: Pearson's, of homogeneity.
        degrees: its degrees of freedom; 0 where there are too few items to compare.
        p_value: chance of so large a statistic, or of so different a share of items that score as high as positives, without a
            shift.
        adjusted_p: the same, corrected for all comparisons by Holm's method.
        distance: the least share of the items that must have moved between bins (total variation distance).
        reviewed: share of the items that reach the review threshold; ``None`` without a threshold, and for presence.
        reviewed_before: that share on the calibration split.
        upper: share of the items that score as high as so many did on the calibration split as were positive; ``None`` likewise.
        upper_before: that share on the calibration split.
        warning: what no longer holds, in words; ``None`` if nothing was found.
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
    """Traffic compared with the calibration split.

    Attributes:
        labels: label to the comparison of its probabilities.
        presence: the comparison of the modalities present; ``None`` where they are not known on both sides.
    """

    labels: dict[str, DriftTest]
    presence: DriftTest | None

    @property
    def warnings(self) -> list[str]:
        """All warnings; empty if nothing was found."""
        found = [*self.labels.values(), *([self.presence] if self.presence else [])]
        return [difference.warning for difference in found if difference.warning is not None]


def detect_drift(
    reference: DriftReference, probabilities_NL: ArrayLike, presence_N: Sequence[str | None] | None = None
) -> DriftResults:
    """Compare unlabelled traffic with the calibration split.

    Args:
        reference: the split's sketch.
        probabilities_NL: calibrated by what the sketch was calibrated by, one column for each of its labels; NaN is left out.
        presence_N: of each item the modalities that it has.

    Raises:
        ValueError: if the columns are not as many as the labels.
    """
    from vigil_evaluation.stats.exact_tests import holm

    read_NL = np.asarray(probabilities_NL, np.float32)
    if read_NL.ndim != 2 or read_NL.shape[1] != len(reference.labels):
        raise ValueError(f"probabilities {read_NL.shape} must be [N, {len(reference.labels)}], one column for each label")
    tables = {}
    for i, (name, label) in enumerate(reference.labels.items()):
        counts = _binned(read_NL[:, i][~np.isnan(read_NL[:, i])], label.edges)
        tables[name] = np.array([label.counts, counts])
    patterns = _counted(presence_N)
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


class HomogeneityTest(NamedTuple):
    """Pearson's statistic, its degrees of freedom, and the chance of so large a one."""

    statistic: float
    degrees: int
    p_value: float


def homogeneity(counts_2B: Integers) -> HomogeneityTest:
    """Pearson's test that two samples are distributed alike over bins.

    Args:
        counts_2B: of each sample the items in each bin, no bin empty in both. With fewer than two bins, or an empty sample,
            there is nothing to compare, and the p-value is 1.
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
            what.append(f"{_percent(upper)} of them score as the top {_percent(upper_before)} did there")
        if reviewed is not None and reviewed_before is not None:
            what.append(f"{_percent(reviewed)} reach its review threshold, there {_percent(reviewed_before)}")
        lost = f"the stated miss rate of {_percent(reference.miss_rate)} is not guaranteed on this traffic"
        if label.review is None:
            lost = "they need not be frequencies on this traffic"
        warning = f"probabilities of {name} are distributed otherwise than on the calibration split ({'; '.join(what)}): {lost}"
    items = int(counts_2B[1].sum())
    return DriftTest(items, *test, adjusted_p, distance, reviewed, reviewed_before, upper, upper_before, warning)


def _above(counts_2B: Integers, edges: Sequence[float], edge: float | None) -> tuple[float | None, float | None]:
    """The share of the calibration items, and of the new ones, that reach an edge."""
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
        what = f"{names[most]} {_percent(now_P[most])} of the items, there {_percent(before_P[most])}"
        lost = f"the stated miss rate of {_percent(reference.miss_rate)} is not guaranteed on this traffic"
        warning = f"modalities are mixed otherwise than on the calibration split ({what}): {lost}"
    return DriftTest(int(counts_2P[1].sum()), *test, adjusted_p, distance, None, None, None, None, warning)


def _sketch(read_K: NDArray[np.float32], label: LabelConformalThresholds) -> LabelDriftReference:
    """Bins of equal mass, the uppermost halved until few items are above it, and edges at the review threshold and ``upper``."""
    if not len(read_K):
        return LabelDriftReference([], [0], None, None)
    levels = [i / _LEVELS for i in range(1, _LEVELS)]
    while len(read_K) * (1 - levels[-1]) / 2 >= _IN_TAIL:
        levels.append((1 + levels[-1]) / 2)
    edges = {float(edge) for edge in np.quantile(read_K, levels, method="higher")}
    upper = None
    if label.positive:
        share = max(label.positive / label.known, _IN_TAIL / len(read_K))
        upper = float(np.quantile(read_K, max(1 - share, 0), method="higher"))
    # Nothing is below the least value, so an edge there would make an empty bin.
    upper = upper if upper is not None and upper > read_K.min() else None
    given = {edge for edge in (label.review, upper) if edge is not None}
    rising = sorted({edge for edge in edges if edge > read_K.min()} | given)
    return LabelDriftReference(rising, _binned(read_K, rising).tolist(), label.review, upper)


def _binned(read_K: NDArray[np.float32], edges: Sequence[float]) -> Integers:
    places = np.searchsorted(np.array(edges), read_K.astype(np.float64), side="right")
    return np.bincount(places, minlength=len(edges) + 1).astype(np.int64)


def _over_bins(counts_2B: Integers) -> HomogeneityTest:
    """Are the new items spread over bins as the calibration items were, at whose quantiles the bins begin?

    The share of traffic in a bin between two quantiles of a sample of n is itself a draw, from a Dirichlet distribution, so new
    counts vary (n + m) / n times as much as multinomial ones, and Pearson's statistic is divided by that.
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
    """P-value that as large a share of the new items lies above an edge as of the calibration items, whose quantile it is.

    With a edges above of n, the share of traffic there is a draw from the beta distribution of parameters a and n + 1 - a.
    """
    from scipy.stats import betabinom

    (before, now), (above_before, above) = counts_2B.sum(axis=1), counts_2B[:, place:].sum(axis=1)
    if not now or not 0 < above_before <= before:
        return 1.0
    chance = betabinom(now, above_before, before + 1 - above_before)
    return float(min(1.0, 2 * min(chance.cdf(above), chance.sf(above - 1))))


def _compared(counts_2B: Integers, label: LabelDriftReference) -> HomogeneityTest:
    """Over all bins, and over the edge that tells most of positives; the smaller p-value, doubled."""
    test = _over_bins(counts_2B)
    if label.upper is None:
        return test
    return test._replace(p_value=min(1.0, 2 * min(test.p_value, _over_edge(counts_2B, label.edges.index(label.upper) + 1))))


def _joined(counts_2B: Integers) -> Integers:
    """Neighbouring bins joined, from the uppermost down, until enough items are expected in each by the reference alone."""
    before, now = counts_2B.sum(axis=1)
    per_item = now / before if before else 0.0
    starts, gathered = [], 0
    for i in range(counts_2B.shape[1] - 1, -1, -1):
        gathered += int(counts_2B[0, i])
        if gathered >= _ENOUGH_BEFORE and gathered * per_item >= _ENOUGH_NOW:
            starts.append(i)
            gathered = 0
    if not starts:
        return counts_2B[:, :0]
    return np.add.reduceat(counts_2B, [0, *starts[-2::-1]], axis=1)


def _rare_joined(counts_2P: Integers) -> Integers:
    """Patterns of which too few are expected, going by both samples together, joined into one."""
    total_P, items = counts_2P.sum(axis=0), counts_2P.sum(axis=1)
    rare_P = total_P * (items.min() / items.sum()) < _EXPECTED
    table = np.column_stack([counts_2P[:, ~rare_P], counts_2P[:, rare_P].sum(axis=1)])
    return table[:, table.sum(axis=0) > 0]


def _distance(counts_2B: Integers) -> float:
    if not counts_2B.sum(axis=1).all():
        return 0.0
    before_B, now_B = counts_2B / counts_2B.sum(axis=1, keepdims=True)
    return float(np.abs(now_B - before_B).sum() / 2)


def _counted(presence_N: Sequence[str | None] | None) -> dict[str, int]:
    return dict(Counter(str(pattern) for pattern in (() if presence_N is None else presence_N) if pattern is not None))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _label_reference(value: Any, where: str) -> LabelDriftReference:
    given = json_fields.mapping(value, where, ("edges", "counts", "review", "upper"))
    edges = json_fields.numbers(given["edges"], f"{where}.edges", 0, 1)
    counts = [
        json_fields.count(n, f"{where}.counts.{i}") for i, n in enumerate(json_fields.items(given["counts"], f"{where}.counts"))
    ]
    if len(counts) != len(edges) + 1 or any(low >= high for low, high in pairwise(edges)):
        json_fields.wrong(where, "the edges must rise, and there must be one count more than edges")
    for name in ("review", "upper"):
        if given[name] is not None and json_fields.number(given[name], f"{where}.{name}", 0, 1) not in edges:
            json_fields.wrong(f"{where}.{name}", "must be one of the edges")
    return LabelDriftReference(edges, counts, given["review"], given["upper"])
