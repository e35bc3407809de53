"""Test whether the labelled items of a table are a random sample: does it depend on a score or a column which targets are known?

If every item with a high probability was reviewed and a tenth of the others, recall among the labelled items is far above the
recall on traffic. Such a design shows in the table: the share of known targets differs between items with high and low
probabilities. Every probability is split at quantiles, every column into its values, and each part is compared with the rest:

- Without inclusion probabilities, by Fisher's exact test of the shares of known targets.
- With them, by the exact test of two Poisson counts (Przyborowski and Wilenski 1940): known targets against the sum of the stated
  probabilities. Only the ratio between the part and the rest is tested, as a common factor, such as reviews that never came,
  biases no share. Counts of independent draws vary less than Poisson counts, so the test is conservative.

With units, such as authors that are labelled as a whole, counts are divided by their design effects (Rao and Scott 1992; by more
for few units, Korn and Graubard 1998), rounded towards no difference. Holm's correction (1979) over all parts, scores, columns
and labels bounds the probability of any false alarm by ``FALSE_ALARM_RATE``. A label whose every target is known is not tested:
the labelled rows alone do not show how they were chosen.

Example:
    >>> found = label_selection(~np.isnan(targets_NL), probabilities_NL, ["spam"], {"market": grouping})
    >>> found.lines
    ['label spam: the labelled items are not a random sample: 93 % of the items with probability.spam ≥ 0.5 have a known …']
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_evaluation.metrics import Floats
from vigil_evaluation.sampling_weights import INCLUSION_PROBABILITY, SamplingWeights
from vigil_evaluation.stats.binomial import design_effect
from vigil_evaluation.stats.exact_tests import ErrorCounts, fisher_p_values
from vigil_evaluation.stats.multiple_testing import holm

FALSE_ALARM_RATE = 0.01
"""Largest probability of any finding in a table whose labelled items are a random sample, or were chosen as stated."""

MIN_SHARE_RATIO = 1.02
"""Smallest ratio of two shares of known targets that is reported: one of 1.02 moves no metric that is a share by more than half
a percentage point, and a huge table makes any ratio significant."""

MIN_ITEMS = 20
"""Fewest items of a part, and outside it."""

MAX_VALUES = 200
"""Largest number of values of a column that are tested, the most frequent ones."""

SPLIT_QUANTILES = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
"""Quantiles at which a probability is split; closer together where reviews begin."""

REVIEW_PROBABILITY = 0.5
"""Another split: the threshold of a review that nobody tuned."""

Bools = NDArray[np.bool_]
Codes = NDArray[np.integer]


class CodedColumn(Protocol):
    """A column as integers, such as a :class:`vigil_evaluation.slices.grouping.Grouping`."""

    @property
    def values(self) -> Sequence[str | None]:
        """Values; ``None`` for null."""

    @property
    def codes_N(self) -> Codes:
        """Place in ``values`` of each row's value; negative for none."""


@dataclass(frozen=True, slots=True)
class KnownCount:
    """Number of items, and of those with a known target.

    Attributes:
        items: number of items.
        known: number of items whose target is known.
        stated: sum of the items' inclusion probabilities; ``None`` if the table has none.
    """

    items: int
    known: int
    stated: float | None

    @property
    def share(self) -> float:
        """Share of known targets, or their number for each stated one."""
        return self.known / max(self.items if self.stated is None else self.stated, 1e-300)


@dataclass(frozen=True, slots=True)
class LabelDependence:
    """A score or column on which it depends whether a label's target is known.

    Attributes:
        label: the label.
        column: column of the predictions table, such as ``probability.spam`` or ``market``.
        part: part of the items with the most different share of known targets, such as ``probability.spam ≥ 0.5``.
        inside: counts of that part.
        outside: counts of all other items.
        p_value: corrected for everything tested.
    """

    label: str
    column: str
    part: str
    inside: KnownCount
    outside: KnownCount
    p_value: float

    @property
    def line(self) -> str:
        """One line for readers."""
        inside, outside, known = self.inside, self.outside, "has" if self.inside.known == 1 else "have"
        if inside.stated is None or outside.stated is None:
            return (
                f"label {self.label}: the labelled items are not a random sample: {_percent(inside.share)} of the items with "
                f"{self.part} have a known target, and {_percent(outside.share)} of the others"
            )
        return (
            f"label {self.label}: the labelled items were not chosen as {INCLUSION_PROBABILITY} states: {inside.known:,} items "
            f"with {self.part} {known} a known target where {inside.stated:,.0f} are stated, and {outside.known:,} others "
            f"where {outside.stated:,.0f} are stated"
        )


@dataclass(frozen=True, slots=True)
class LabelSelection:
    """Result of the test whether the labelled items are a random sample, or were chosen as stated.

    Attributes:
        false_alarm_rate: largest probability of any finding if they are.
        tests: number of tests, all corrected together.
        dependences: scores and columns on which known targets depend, by label; a label's own probability first, then the most
            different shares.
    """

    false_alarm_rate: float
    tests: int
    dependences: list[LabelDependence]

    @property
    def labels(self) -> list[str]:
        """Labels whose known targets depend on a score or column."""
        return list(dict.fromkeys(found.label for found in self.dependences))

    @property
    def lines(self) -> list[str]:
        """One line for each such label: its first dependence."""
        return [next(found.line for found in self.dependences if found.label == label) for label in self.labels]


class _Part(NamedTuple):
    """Rows whose code is from ``first`` up to, not including, ``end``."""

    name: str
    first: int
    end: int


class _Split(NamedTuple):
    """A column of the table, the code of each row, and the parts that are tested."""

    column: str
    codes_N: Codes
    parts: list[_Part]


class _Pattern(NamedTuple):
    """Which targets are known, the number expected of each row, and the labels that share this pattern."""

    known_N: Bools
    stated_N: Floats | None
    rows_N: Bools
    labels: list[int]


class _Tested(NamedTuple):
    """A tested part: its pattern and split, and the counts and expected numbers inside and outside."""

    pattern: _Pattern
    split: _Split
    part: _Part
    known_2: Floats
    expected_2: Floats
    items_2: Floats


def label_selection(  # noqa: PLR0917 (a table, and how it was sampled)
    known_NL: Bools,
    probabilities_NL: ArrayLike,
    labels: Sequence[str],
    columns: Mapping[str, CodedColumn] | None = None,
    units_N: NDArray[np.int32] | None = None,
    weights: SamplingWeights = SamplingWeights(),  # noqa: B008  it is frozen
) -> LabelSelection | None:
    """Test for each label whether its known targets depend on any label's probability or on a column.

    Args:
        known_NL: whether each target is known.
        probabilities_NL: in [0, 1].
        labels: names of the L columns.
        columns: further columns that known targets may depend on.
        units_N: unit of each row, from 0; ``None`` if rows are independent.
        weights: of the rows. Inclusion probabilities, if the table has them, are tested instead of equal ones; a row without one
            is left out.

    Returns:
        ``None`` if nothing can be tested: no label has both known and unknown targets.
    """
    patterns = _patterns(known_NL, weights)
    if not patterns:
        return None
    probabilities = np.asarray(probabilities_NL, np.float64)
    splits = [_score_split(f"probability.{label}", probabilities[:, i]) for i, label in enumerate(labels)]
    splits += [_value_split(name, column) for name, column in (columns or {}).items()]
    tested = [one for pattern in patterns for split in splits for one in _tested(pattern, split)]
    p_values = _p_values(tested)
    if units_N is not None:
        # Units only make p-values larger: what is not found without them is not found with them.
        for place in np.flatnonzero(holm(p_values) <= FALSE_ALARM_RATE):
            p_values[place] = max(p_values[place], _with_units(tested[place], units_N, FALSE_ALARM_RATE / len(tested)))
    corrected = holm(p_values)
    found: dict[tuple[int, str], LabelDependence] = {}
    for place in np.flatnonzero(corrected <= FALSE_ALARM_RATE):
        for label in tested[place].pattern.labels:
            one = _dependence(labels[label], tested[place], float(corrected[place]))
            other = found.get((label, one.column))
            if _ratio(one) >= MIN_SHARE_RATIO and (other is None or _difference(one) > _difference(other)):
                found[label, one.column] = one
    order = sorted(found, key=lambda key: (key[0], key[1] != f"probability.{labels[key[0]]}", -_difference(found[key])))
    return LabelSelection(FALSE_ALARM_RATE, len(tested), [found[key] for key in order])


def _patterns(known_NL: Bools, weights: SamplingWeights) -> list[_Pattern]:
    """Return the distinct patterns of known targets: labels of one review share one."""
    stated_N = weights.inclusion_N
    rows_N = np.ones(len(known_NL), np.bool_) if stated_N is None else ~np.isnan(stated_N)
    found: dict[bytes, _Pattern] = {}
    for label, known_N in enumerate(known_NL.T):
        among_N = known_N[rows_N]
        if among_N.any() and not among_N.all():
            key = np.packbits(known_N).tobytes()
            found.setdefault(key, _Pattern(known_N & rows_N, stated_N, rows_N, [])).labels.append(label)
    return list(found.values())


def _score_split(column: str, scores_N: Floats) -> _Split:
    cuts = np.unique([*np.quantile(scores_N, SPLIT_QUANTILES, method="nearest"), REVIEW_PROBABILITY])
    bins = len(cuts) + 1
    names = [f"{cut:.4g}" for cut in cuts.tolist()]
    parts = [_Part(f"{column} ≥ {name}", place + 1, bins) for place, name in enumerate(names)]
    inner = [_Part(f"{column} from {low} to {high}", place + 1, place + 2) for place, (low, high) in enumerate(pairwise(names))]
    return _Split(column, np.searchsorted(cuts, scores_N, side="right"), [*parts, *inner])


def _value_split(column: str, coded: CodedColumn) -> _Split:
    counts = np.bincount(coded.codes_N[coded.codes_N >= 0], minlength=len(coded.values))
    kept = np.argsort(-counts, kind="stable")[:MAX_VALUES].tolist()
    named = [(place, "null" if coded.values[place] is None else coded.values[place]) for place in kept]
    # Two values have one comparison.
    return _Split(
        column, coded.codes_N, [_Part(f"{column} = {value}", i, i + 1) for i, value in named[: len(named) - (len(named) == 2)]]
    )


def _tested(pattern: _Pattern, split: _Split) -> Iterator[_Tested]:
    codes = np.where(pattern.rows_N, split.codes_N, -1)
    size = max((part.end for part in split.parts), default=0)
    inside = codes >= 0
    codes_I = codes[inside]
    stated_I = None if pattern.stated_N is None else pattern.stated_N[inside]
    sums = [
        np.append(0.0, np.cumsum(np.bincount(codes_I, values, size)[:size]))
        for values in (pattern.known_N[inside], np.ones(len(codes_I)) if stated_I is None else stated_I, None)
    ]
    known, expected = float(pattern.known_N.sum()), float(pattern.rows_N.sum())
    if pattern.stated_N is not None:
        expected = float(pattern.stated_N[pattern.rows_N].sum())
    for part in split.parts:
        of = [float(total[part.end] - total[part.first]) for total in sums]
        items = np.array([of[2], pattern.rows_N.sum() - of[2]])
        if items.min() >= MIN_ITEMS:
            yield _Tested(pattern, split, part, np.array([of[0], known - of[0]]), np.array([of[1], expected - of[1]]), items)


def _p_values(tested: Sequence[_Tested]) -> Floats:
    """Return the two-sided p-value of each part against the rest, for independent rows."""
    p_values = np.ones(len(tested))
    by_shares = [place for place, one in enumerate(tested) if one.pattern.stated_N is None]
    by_counts = [place for place, one in enumerate(tested) if one.pattern.stated_N is not None]
    for places, two_sided in ((by_shares, _fisher), (by_counts, _poisson)):
        if places:
            known_K2, expected_K2 = (np.array([getattr(tested[p], name) for p in places]) for name in ("known_2", "expected_2"))
            p_values[places] = two_sided(known_K2, expected_K2)
    return p_values


def _fisher(known_K2: Floats, items_K2: Floats) -> Floats:
    sides = [ErrorCounts(known_K2[:, side], items_K2[:, side]) for side in (0, 1)]
    return _two_sided(fisher_p_values(sides[0], sides[1]), fisher_p_values(sides[1], sides[0]))


def _poisson(known_K2: Floats, expected_K2: Floats) -> Floats:
    """Return the two-sided p-values that counts have the ratio of the expected ones: conditionally on their sum, binomial."""
    from scipy.special import betainc

    inside, outside = known_K2.T
    share = expected_K2[:, 0] / expected_K2.sum(axis=1)
    # Probability of at least this count inside, and of at most this count.
    least = np.where(inside > 0, betainc(np.maximum(inside, 1e-9), outside + 1, share), 1.0)
    most = np.where(outside > 0, betainc(np.maximum(outside, 1e-9), inside + 1, 1 - share), 1.0)
    return _two_sided(least, most)


def _two_sided(one: Floats, other: Floats) -> Floats:
    return np.asarray(np.minimum(2 * np.minimum(one, other), 1.0), np.float64)


def _with_units(tested: _Tested, units_N: NDArray[np.int32], level: float) -> float:
    """Return the p-value with counts divided by their design effects, and for few units by more (Korn and Graubard 1998)."""
    from scipy.special import ndtri, stdtrit

    pattern, (_, first, end) = tested.pattern, tested.part
    codes = tested.split.codes_N
    inside_N = (codes >= first) & (codes < end) & (codes >= 0)
    size, known_2, expected_2 = int(units_N.max()) + 1, tested.known_2, tested.expected_2
    effects = []
    for side_N in (inside_N & pattern.rows_N, ~inside_N & pattern.rows_N):
        known_U = np.bincount(units_N[side_N], pattern.known_N[side_N], size)
        items_U = np.bincount(units_N[side_N], minlength=size)
        if pattern.stated_N is None:
            effect = design_effect(known_U, items_U)
        else:
            effect = _count_design_effect(known_U, np.bincount(units_N[side_N], pattern.stated_N[side_N], size))
        freedom = int((items_U > 0).sum()) - 1
        effects.append(effect * float(stdtrit(freedom, level / 2) / ndtri(level / 2)) ** 2 if freedom > 0 else float("inf"))
    if not np.isfinite(effects).all():
        return 1.0
    known, expected = known_2 / effects, expected_2 / effects
    if pattern.stated_N is not None:
        return float(_poisson(known[None], expected[None])[0])
    # Rounded towards no difference.
    items, more = np.floor(expected), int(known[1] * expected[0] > known[0] * expected[1])
    known[more], known[1 - more] = np.floor(known[more]), np.ceil(known[1 - more])
    return float(_fisher(np.minimum(known, items)[None], items[None])[0]) if items.min() > 0 else 1.0


def _count_design_effect(known_U: NDArray[np.number], expected_U: NDArray[np.number]) -> float:
    """Return the ratio of a count's variance over units to that of a Poisson count, at least 1; see :func:`design_effect`."""
    there = expected_U > 0
    units, known, expected = int(there.sum()), float(known_U.sum()), float(expected_U.sum())
    if units < 2:
        return float("inf")
    if not known:
        return max(float((expected_U**2).sum()) / expected, 1.0)
    spread = float(((known_U - known / expected * expected_U) ** 2).sum())
    return max(units / (units - 1) * spread / known, 1.0)


def _dependence(label: str, tested: _Tested, p_value: float) -> LabelDependence:
    counts = [
        KnownCount(int(items), int(known), None if tested.pattern.stated_N is None else float(expected))
        for items, known, expected in zip(tested.items_2, tested.known_2, tested.expected_2, strict=True)
    ]
    return LabelDependence(label, tested.split.column, tested.part.name, counts[0], counts[1], p_value)


def _ratio(found: LabelDependence) -> float:
    low, high = sorted((found.inside.share, found.outside.share))
    return high / low if low > 0 else float("inf")


def _difference(found: LabelDependence) -> float:
    return abs(found.inside.share - found.outside.share)


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %") if 0.01 <= share <= 0.99 or share in (0, 1) else f"{share:.1%}".replace("%", " %")
