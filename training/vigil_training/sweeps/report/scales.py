"""Scales of the page: from a value of any kind to its position on an axis."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

MAX_TICKS = 5
_DIGITS = (1, 2, 2.5, 5, 10)
"""Leading digits of the distance of two ticks."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis.

    Attributes:
        low: its left or lower end; its logarithm to the base 10 on a logarithmic axis.
        high: its other end.
        ticks: positions in [0, 1] and their texts.
        logarithmic: whether it is logarithmic.
        choices: values of a categorical axis, evenly spaced; empty for numbers.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False
    choices: tuple[Any, ...] = ()

    def position(self, value: Any) -> float:
        """Return the position of a value in [0, 1]; numbers beyond the ends are clipped."""
        if self.choices:
            place = next(i for i, choice in enumerate(self.choices) if choice == value and type(choice) is type(value))
            return _middle(place, len(self.choices))
        at = log10(value) if self.logarithmic else float(value)
        return min(max((at - self.low) / (self.high - self.low), 0.0), 1.0)


def value_scale(values: Iterable[float], *, exact: bool = False, whole: bool = False, ticks: int = MAX_TICKS) -> Scale:
    """Return the shortest linear axis with round ends that covers all finite values.

    Args:
        values: values to cover.
        exact: end exactly at the lowest and the highest of them instead.
        whole: label whole numbers only.
        ticks: highest number of ticks.
    """
    known = [value for value in values if isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):  # Equal, but for rounding.
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    power = 10.0 ** floor(log10((high - low) / ticks))
    steps = [digit * size for size in (power, 10 * power) for digit in _DIGITS]
    steps = [step for step in steps if step >= 1 and step == round(step)] or [1.0] if whole else steps
    down, up = (ceil, floor) if exact else (floor, ceil)

    def ends_at(step: float) -> tuple[int, int]:
        slack = 1e-9 if down is floor else -1e-9
        return down(low / step + slack), up(high / step - slack)

    step = next((step for step in steps if ends_at(step)[1] - ends_at(step)[0] < ticks), steps[-1])
    first, last = ends_at(step)
    ends = (low, high) if exact else (first * step, last * step)
    at = [i * step for i in range(first, last + 1)]
    return Scale(*ends, tuple((min(max((value - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0), number(value)) for value in at))


def parameter_scale(distributions: Sequence[BaseDistribution]) -> Scale:
    """Return the axis of a parameter, over the whole range in which it is searched.

    Args:
        distributions: the parameter's distribution in each trial; usually they are equal.
    """
    if all(isinstance(of, CategoricalDistribution) for of in distributions):
        choices: list[Any] = []
        for of in distributions:
            assert isinstance(of, CategoricalDistribution)
            choices += [new for new in of.choices if not any(new == old and type(new) is type(old) for old in choices)]
        places = tuple((_middle(i, len(choices)), shown(choice)) for i, choice in enumerate(choices))
        return Scale(0.0, 1.0, places, choices=tuple(choices))
    numeric = [of for of in distributions if isinstance(of, FloatDistribution | IntDistribution)]
    low, high = float(min(of.low for of in numeric)), float(max(of.high for of in numeric))
    if low == high or not all(of.log for of in numeric):
        scale = value_scale([low, high], exact=True)
        return scale if low < high else Scale(scale.low, scale.high, ((0.5, number(low)),))
    ends = log10(low), log10(high)
    powers = range(ceil(ends[0] - 1e-9), floor(ends[1] + 1e-9) + 1)
    step = ceil(len(powers) / MAX_TICKS) or 1
    at = [10.0**power for power in powers[::step]] if len(powers) > 1 else [low, high]
    return Scale(*ends, tuple(((log10(tick) - ends[0]) / (ends[1] - ends[0]), number(tick)) for tick in at), logarithmic=True)


def number(value: float) -> str:
    """Format a number for people: at most four significant digits, ``1e-05`` as ``1e-5``."""
    digits, e, power = f"{value:.4g}".replace("-", "\N{MINUS SIGN}", value < 0).partition("e")
    return f"{digits}e{int(power)}" if e else digits


def shown(value: Any) -> str:
    """Format a parameter's value as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return number(value) if isinstance(value, float) else str(value)


def _middle(place: int, of: int) -> float:
    return (place + 0.5) / of
