"""The few shapes that the demonstration's pictures are put together from, in the square from -1 to 1, y downwards."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[float, float]


class Shape(NamedTuple):
    """A filled polygon, or a stroke where ``width`` is given."""

    role: str
    points: Sequence[Point]
    width: float = 0.0


def box(role: str, left: float, top: float, right: float, bottom: float) -> Shape:
    """A rectangle."""
    return Shape(role, [(left, top), (right, top), (right, bottom), (left, bottom)])


def oval(role: str, x: float, y: float, rx: float, ry: float | None = None) -> Shape:
    """An ellipse as a polygon of 28 corners."""
    ry = rx if ry is None else ry
    return Shape(role, [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in (2 * math.pi * k / 28 for k in range(28))])


def line(role: str, width: float, *points: Point) -> Shape:
    """A stroke through ``points``."""
    return Shape(role, points, width)
