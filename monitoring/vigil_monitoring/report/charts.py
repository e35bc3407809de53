"""Charts of the dashboard as coordinates; the template draws them as SVG in the colours of the theme."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from vigil_evaluation.report import curves
from vigil_evaluation.report.axes import fit_axis
from vigil_evaluation.report.rendering import format_count, format_percent
from vigil_monitoring.report.dashboard import Point, Series
from vigil_monitoring.report.history import Change
from vigil_monitoring.results import Period

ROUND = (1, 2, 2.5, 5, 10)
"""Leading digits of the ends of an axis of counts."""

MAX_CURVES = 8
"""Periods whose maturity curves are drawn: the newest."""


@dataclass(frozen=True, slots=True)
class Dot:
    """An estimate with its interval: position, ends of the interval, and tooltip."""

    x: float
    y: float
    low_y: float
    high_y: float
    hollow: bool
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A count of a day, with its tooltip."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A day on which what decides changed, with its tooltip."""

    x: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart over time.

    Attributes:
        title: what is drawn.
        across: positions in [0, 1] and texts of the axis of days.
        up: texts of the vertical axis at its bottom, middle and top.
        dots: estimates.
        line: SVG path through them.
        truth: SVG path of the true values; empty where unknown.
        bars: counts.
        marks: changes.
        summary: the chart in a sentence, for readers of the text.
    """

    title: str
    across: tuple[tuple[float, str], ...]
    up: tuple[str, str, str]
    dots: tuple[Dot, ...] = ()
    line: str = ""
    truth: str = ""
    bars: tuple[Bar, ...] = ()
    marks: tuple[Mark, ...] = ()
    summary: str = ""


def series_chart(series: Series, title: str, over: Period, changes: Iterable[Change] = ()) -> Chart:
    """Draw estimates over time.

    Args:
        series: the estimates.
        title: what they are.
        over: days of the horizontal axis.
        changes: changes of what decides.
    """
    truth = [value for _, value in series.truth]
    ends = [end for point in series.points for end in (point.interval or ())]
    axis = fit_axis([*(point.value for point in series.points), *ends, *truth, 0.0])

    def up(value: float) -> float:
        return curves.y(float(axis.position(value)) / 100)

    dots = [_dot(_across(over, point.period), point, up) for point in series.points if point.value is not None]
    last = next((point for point in reversed(series.points) if point.value is not None), None)
    return Chart(
        title,
        _days_axis(over),
        (short_percent(axis.low), short_percent((axis.low + axis.high) / 2), short_percent(axis.high)),
        dots=tuple(dots),
        line=_path((dot.x, dot.y) for dot in dots),
        truth=_path((_across(over, period), up(value)) for period, value in series.truth),
        marks=_marks(over, changes),
        summary=f"{title}: {len(dots)} estimates" + (f", the last {format_percent(last.value or 0)}" if last else ""),
    )


def maturity_chart(series: Series, title: str) -> Chart:
    """Draw what was known of each period at each age of its decisions, and now; with the intervals of the newest period.

    Args:
        series: estimates with curves.
        title: what they are.
    """
    now = {point.period: point for point in series.points}
    shown = [(*curve.steps, (math.inf, now[curve.period])) for curve in series.curves[-MAX_CURVES:]]
    ages = sorted({age for steps in shown for age, _ in steps})
    place = {age: (n + 0.5) / len(ages) for n, age in enumerate(ages)}
    ends = [end for _, point in shown[-1] for end in (point.interval or ())]
    axis = fit_axis([*(point.value for steps in shown for _, point in steps), *ends, 0.0])

    def up(value: float) -> float:
        return curves.y(float(axis.position(value)) / 100)

    newest = [
        _dot(curves.x(place[age]), point, up, "now" if math.isinf(age) else f"after {age:g} d")
        for age, point in shown[-1]
        if point.value is not None
    ]
    lines = [_path((curves.x(place[age]), up(of.value)) for age, of in steps if of.value is not None) for steps in shown]
    return Chart(
        title,
        tuple((place[age], "now" if math.isinf(age) else f"{age:g} d") for age in ages),
        (short_percent(axis.low), short_percent((axis.low + axis.high) / 2), short_percent(axis.high)),
        dots=tuple(newest),
        line="".join(lines),
        summary=f"{title} by age of the decisions: {len(shown)} periods; {'; '.join(dot.text for dot in newest)}",
    )


def _dot(x: float, point: Point, up: Callable[[float], float], when: str = "") -> Dot:
    """Return the dot of an estimate that has a value."""
    value = point.value or 0.0
    low, high = point.interval or (value, value)
    text = f"{point.period}{', ' if when else ''}{when}: {format_percent(value)}"
    if point.interval is not None:
        text += f" ({format_percent(low)} to {format_percent(high)})"
    state = " (biased)" if point.biased else " (not final)" if point.final is False else ""
    text += f", {point.reviewed:,} reviewed{state}"
    return Dot(x, up(value), up(low), up(high), point.biased or point.final is False, text)


def bar_chart(title: str, counts: Mapping[date, int], over: Period, changes: Iterable[Change] = ()) -> Chart:
    """Draw counts of days; arguments as for :func:`series_chart`."""
    top = _round_up(max(counts.values(), default=0))
    days = (over.end - over.start).days + 1
    width = max((curves.x(1) - curves.x(0)) / days - 1, 0.5)
    bars = []
    for day, count in counts.items():
        height = round((curves.y(0) - curves.y(1)) * count / top, 2)
        left = curves.x((day - over.start).days / days)
        bars.append(Bar(left, round(curves.y(0) - height, 2), round(width, 2), height, f"{day}: {format_count(count)}"))
    return Chart(
        title,
        _days_axis(over),
        ("0", short_count(top / 2), short_count(top)),
        bars=tuple(bars),
        marks=_marks(over, changes),
        summary=f"{title}: {format_count(sum(counts.values()))} on {len(counts)} days",
    )


def short_percent(value: float) -> str:
    """Format a share for an axis: ``0.25%``, ``100%``."""
    return f"{100 * value:.3g}%"


def short_count(value: float) -> str:
    """Format a count for an axis: ``1.5k``, ``20M``."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _round_up(value: float) -> float:
    size = 10.0 ** (len(str(max(int(value), 1))) - 1)
    return next(digit * size for digit in ROUND if digit * size >= value)


def _across(over: Period, period: Period) -> float:
    """Return the abscissa of the middle of some days."""
    days = (over.end - over.start).days + 1
    middle = ((period.start - over.start).days + (period.end - over.start).days + 1) / 2
    return curves.x(min(max(middle / days, 0.0), 1.0))


def _days_axis(over: Period) -> tuple[tuple[float, str], ...]:
    """Return up to four days, evenly spaced, at the middle of their places; the last at the end of the axis, so that it fits."""
    days = (over.end - over.start).days + 1
    number = min(4, days)
    chosen = sorted({round(i * (days - 1) / max(number - 1, 1)) for i in range(number)})
    same_year = over.start.year == over.end.year
    shown: Callable[[date], str] = (lambda day: f"{day:%m-%d}") if same_year else (lambda day: f"{day:%y-%m-%d}")
    return tuple(
        (1.0 if 0 < place == days - 1 else (place + 0.5) / days, shown(over.start + timedelta(days=place))) for place in chosen
    )


def _marks(over: Period, changes: Iterable[Change]) -> tuple[Mark, ...]:
    by_day: dict[date, list[str]] = {}
    for change in changes:
        by_day.setdefault(change.day, []).append(f"{change.what}: {change.text}")
    days = (over.end - over.start).days + 1
    return tuple(
        Mark(curves.x(min(max((day - over.start).days / days, 0.0), 1.0)), f"{day}: {'; '.join(texts)}")
        for day, texts in sorted(by_day.items())
    )


def _path(points: Iterable[tuple[float, float]]) -> str:
    through: Sequence[str] = [f"{x:.1f} {y:.1f}" for x, y in points]
    return "M" + "L".join(through) if len(through) > 1 else ""
