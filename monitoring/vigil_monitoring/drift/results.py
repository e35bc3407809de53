"""Results of drift detection, as `vigil monitor drift` writes and `vigil monitor report` reads them (kind ``drift``)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vigil_data.json_fields import Count, Fraction, NonNegative
from vigil_evaluation.stats.intervals import Interval

DriftKind = Literal["score", "action", "presence", "mix", "error", "volume", "label shift", "input", "calibration"]
KINDS: tuple[DriftKind, ...] = ("score", "action", "presence", "mix", "error", "volume", "label shift", "input", "calibration")


@dataclass(frozen=True, slots=True)
class DriftAlarm:
    """A change that is not negligible.

    Attributes:
        kind: what changed.
        slice: slice of the traffic, such as ``language=de``; ``all`` for all items.
        label: label of a score, label shift or calibration alarm.
        subject: what is counted, such as ``probability of hate >= 0.3`` or ``presence = image``.
        before: its value in the reference: a share, a number of decisions or of positives per predicted one, or 0 for features.
        now: its value in the windows since ``since``; for features in standard deviations from the reference.
        since: first day of the first changed window that is supported most, ISO 8601.
        alarm: last day of the window after which the alarm was raised first, ISO 8601.
        p_value: corrected for all kinds, labels, slices and looks.
        examples: ids that contribute most on the day of the alarm, at most 20.
        sentence: the alarm in one sentence.
    """

    kind: DriftKind
    slice: str
    label: str | None
    subject: str
    before: float
    now: float
    since: str
    alarm: str
    p_value: Fraction
    examples: list[str]
    sentence: str


@dataclass(frozen=True, slots=True)
class KindResults:
    """Tests of one kind.

    Attributes:
        kind: the kind.
        streams: number of tested shares, counts or means.
        alarms: number of alarms.
        p_values: smallest corrected p-value up to each window, in order.
    """

    kind: DriftKind
    streams: Count
    alarms: Count
    p_values: list[Fraction]


@dataclass(frozen=True, slots=True)
class LabelShift:
    """Prevalence of one label in the last windows, by estimates that need no reviews.

    Attributes:
        label: the label.
        slice: slice of the traffic; ``all`` for all items.
        before: mean probability in the reference.
        mean_probability: mean probability now: the prevalence if the probabilities are still calibrated.
        shifted: maximum-likelihood prevalence if only the prevalence changed (Saerens et al. 2002).
        interval: interval of ``shifted``, from the variation of the windows; ``None`` with a single window.
        black_box: prevalence from the share above one edge, if only the prevalence changed (Lipton et al. 2018); ``None`` if no
            edge separates the classes.
        distance: total variation distance of the probabilities from the reference.
        unexplained: that distance from the distribution that the estimated prevalence alone would give.
    """

    label: str
    slice: str
    before: Fraction
    mean_probability: Fraction
    shifted: Fraction
    interval: Interval | None
    black_box: Fraction | None
    distance: Fraction
    unexplained: Fraction


@dataclass(frozen=True, slots=True)
class DriftResults:
    """Comparison of windows of traffic with a reference.

    Attributes:
        reference: what the traffic is compared with.
        window: ``day`` or ``week``.
        windows: first day of each window, ISO 8601.
        last: last day of the last window, ISO 8601.
        items: decisions in each window.
        smallest: factor of the odds below which a change is negligible.
        alpha: largest probability of any false alarm.
        kinds: tests by kind.
        alarms: alarms, the most evident first.
        label_shift: prevalence by label and slice.
        notes: what was not tested, and why.
    """

    reference: str
    window: str
    windows: list[str]
    last: str
    items: list[Count]
    smallest: NonNegative
    alpha: Fraction
    kinds: list[KindResults]
    alarms: list[DriftAlarm]
    label_shift: list[LabelShift]
    notes: list[str]


def percent(share: float) -> str:
    """Return a share as text, such as ``1.2 %``."""
    return f"{100 * share:.3g} %"


def name_of(slice_name: str) -> str:
    """Return the name of a slice for people: ``all`` for the slice of all items."""
    return slice_name or "all"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the first names, and the number of the others."""
    shown = list(names)
    rest = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + rest
