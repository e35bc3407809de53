"""Scales that pictures share: axes that fit what is drawn on them, and steps of colour whose meaning is stated."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor

DIVERGING = (0.01, 0.05, 0.1, 0.2)
"""Distances from which the next step of the diverging scale is used."""

SHADES = (0.05, 0.1, 0.25, 0.5)
"""Shares of errors from which the next step of the scale of errors is used."""

_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis.

    Attributes:
        low: its left end.
        high: its right end.
        ticks: values that are written at it.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> str:
        """Where a value is, as a number of percent of the length; values beyond the ends are at them."""
        return f"{100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0):.2f}"


def axis(values: Iterable[float | None], least: float = 0.0, most: float = 1.0) -> Axis:
    """The shortest axis of round ends and at most five ticks that holds all values.

    Args:
        values: what it must hold; ``None`` is passed over.
        least: no end is below it.
        most: no end is above it.
    """
    held = [min(max(value, least), most) for value in values if value is not None]
    if not held:
        return Axis(least, most, (least, (least + most) / 2, most))
    low, high = min(held), max(held)
    for step in _STEPS:
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        last += first == last
        if last - first <= 4:
            break
    if last * step > most:
        first, last = first - 1, last - 1
    ticks = tuple(round(i * step, 6) for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def diverging(difference: float | None) -> str:
    """The class of a cell whose number differs so much from what it is compared with; worse is negative.

    Returns:
        ``w1`` to ``w4`` for worse, ``b1`` to ``b4`` for better, and nothing where there is no difference to speak of.
    """
    if difference is None:
        return ""
    step = sum(abs(difference) >= bound for bound in DIVERGING)
    return f"{'w' if difference < 0 else 'b'}{step}" if step else ""


def shade(errors: float | None) -> str:
    """The class of a cell with this share of errors: ``w1`` to ``w4``, or nothing."""
    step = 0 if errors is None else sum(errors >= bound for bound in SHADES)
    return f"w{step}" if step else ""
