"""Basic shapes of the demonstration's images, in the square from -1 to 1 with y downwards."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Point = tuple[float, float]


class Shape(NamedTuple):
    """A filled polygon, or a stroke if ``width`` is positive."""

    role: str
    points: Sequence[Point]
    width: float = 0.0


def box(role: str, left: float, top: float, right: float, bottom: float) -> Shape:
    """Return a rectangle."""
    return Shape(role, [(left, top), (right, top), (right, bottom), (left, bottom)])


def oval(role: str, x: float, y: float, rx: float, ry: float | None = None) -> Shape:
    """Return an ellipse as a polygon with 28 corners."""
    ry = rx if ry is None else ry
    return Shape(role, [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in (2 * math.pi * k / 28 for k in range(28))])


def line(role: str, width: float, *points: Point) -> Shape:
    """Return a stroke through ``points``."""
    return Shape(role, points, width)
