"""Axes fitted to the values drawn on them, and colour scales whose steps are printed on the page."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor

DIVERGING_BOUNDS = (0.01, 0.05, 0.1, 0.2)
"""Absolute differences from which the next step of the diverging colour scale is used."""

ERROR_RATE_BOUNDS = (0.05, 0.1, 0.25, 0.5)
"""Error rates from which the next step of the error colour scale is used."""

_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis.

    Attributes:
        low: left end.
        high: right end.
        ticks: values labelled on the axis.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    def position(self, value: float) -> str:
        """Return the position of a value in percent of the length; values beyond the ends are clipped."""
        return f"{100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0):.2f}"


def fit_axis(values: Iterable[float | None], minimum: float = 0.0, maximum: float = 1.0) -> Axis:
    """Return the shortest axis with round ends and at most five ticks that covers all values.

    Args:
        values: values to cover; ``None`` is skipped.
        minimum: lower limit of the left end.
        maximum: upper limit of the right end.
    """
    covered = [min(max(value, minimum), maximum) for value in values if value is not None]
    if not covered:
        return Axis(minimum, maximum, (minimum, (minimum + maximum) / 2, maximum))
    low, high = min(covered), max(covered)
    for step in _STEPS:
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        last += first == last
        if last - first <= 4:
            break
    if last * step > maximum:
        first, last = first - 1, last - 1
    ticks = tuple(round(i * step, 6) for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def diverging_class(difference: float | None, bounds: Iterable[float] = DIVERGING_BOUNDS) -> str:
    """Return the CSS class of a difference: ``w1`` to ``w4`` for worse (negative), ``b1`` to ``b4`` for better, empty near 0."""
    if difference is None:
        return ""
    step = sum(abs(difference) >= bound for bound in bounds)
    return f"{'w' if difference < 0 else 'b'}{step}" if step else ""


def error_rate_class(error_rate: float | None) -> str:
    """Return the CSS class of an error rate: ``w1`` to ``w4``, or empty below the first bound."""
    step = 0 if error_rate is None else sum(error_rate >= bound for bound in ERROR_RATE_BOUNDS)
    return f"w{step}" if step else ""
