"""Page of the loop's demonstration: the truth of each week next to what the loop estimated, as curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vigil_evaluation.report.rendering import render_page
from vigil_evaluation.stats.intervals import Interval

PAGE = Path(__file__).with_name("demo_page.html.jinja")

WIDTH, HEIGHT = 460.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 12.0, 36.0
"""Margins of a plot, in units of the SVG's view box."""


@dataclass(frozen=True, slots=True)
class WeekValue:
    """A quantity in one week: the truth, and its estimate from the reviewed sample; ``None`` where undefined."""

    week: int
    truth: float | None
    estimate: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity over the weeks.

    Attributes:
        name: its name.
        meaning: one sentence.
        top: largest value of the axis.
        weeks: values of the weeks, in order.
    """

    name: str
    meaning: str
    top: float
    weeks: Sequence[WeekValue]

    @property
    def covered(self) -> tuple[int, int]:
        """Number of weeks whose interval has the truth in it, and number of weeks with both."""
        both = [(of.truth, of.interval) for of in self.weeks if of.truth is not None and of.interval is not None]
        return sum(low <= truth <= high for truth, (low, high) in both), len(both)


@dataclass(frozen=True, slots=True)
class PlottedEstimate:
    """An estimate as a point and its interval, in units of the SVG."""

    x: float
    y: float
    low_y: float
    high_y: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A quantity as coordinates; the template draws them."""

    quantity: Quantity
    curve: str
    estimates: Sequence[PlottedEstimate]
    ticks_x: Sequence[tuple[float, int]]
    ticks_y: Sequence[tuple[float, str]]
    marks: Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class LoopEvent:
    """What happened in a week, for the marks of the plots and the list."""

    week: int
    short: str
    text: str


def plot(quantity: Quantity, events: Sequence[LoopEvent]) -> Plot:
    """Return a quantity as coordinates, with a mark for each event."""
    last = max(of.week for of in quantity.weeks)

    def x(week: float) -> float:
        return round(LEFT + (week - 1) / max(last - 1, 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - min(value / quantity.top, 1.0) * (HEIGHT - TOP - BOTTOM), 1)

    points = [f"{x(of.week)},{y(of.truth)}" for of in quantity.weeks if of.truth is not None]
    estimates = [
        PlottedEstimate(x(of.week), y(of.estimate), y(of.interval.low), y(of.interval.high), _described(of))
        for of in quantity.weeks
        if of.estimate is not None and of.interval is not None
    ]
    ticks_y = [(y(quantity.top * part), f"{quantity.top * part:.0%}") for part in (0.0, 0.5, 1.0)]
    marks = [(x(event.week), event.short) for event in events]
    return Plot(quantity, "M" + " L".join(points), estimates, [(x(of.week), of.week) for of in quantity.weeks], ticks_y, marks)


def _described(of: WeekValue) -> str:
    assert of.estimate is not None
    assert of.interval is not None
    truth = "undefined" if of.truth is None else f"{of.truth:.1%}"
    return f"week {of.week}: {of.estimate:.1%} ({of.interval.low:.1%} to {of.interval.high:.1%}), true {truth}"


def render_loop_page(
    quantities: Sequence[Quantity], events: Sequence[LoopEvent], facts: Sequence[tuple[str, str]], to: Path
) -> None:
    """Render the page.

    Args:
        quantities: what is drawn.
        events: what happened, in order.
        facts: names and texts for the head of the page.
        to: HTML file.
    """
    plots = [plot(quantity, events) for quantity in quantities]
    render_page(
        PAGE, to, plots=plots, events=events, facts=facts, width=WIDTH, height=HEIGHT, left=LEFT, right=RIGHT, bottom=BOTTOM
    )
