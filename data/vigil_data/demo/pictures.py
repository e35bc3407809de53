"""Images of the demonstration, drawn with Pillow: an object at a random position and angle, with clutter.

The style (palette, background, outline, softness) is independent of the object, so it carries no information about the label.
"""

import colorsys
import io
import math
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFilter

from vigil_data.demo.objects import OBJECTS
from vigil_data.demo.shapes import Point, Shape, line, oval

RGB = tuple[int, int, int]

STYLES = 60
"""Number of styles; :func:`vigil_data.demo.scenarios.styles_of` assigns them to splits."""

ROLES: dict[str, tuple[float | None, float, float]] = {
    "paper": (0.13, 0.06, 0.97),
    "filter": (0.08, 0.55, 0.85),
    "ember": (0.04, 0.95, 0.95),
    "smoke": (0.60, 0.03, 0.75),
    "wood": (0.07, 0.60, 0.50),
    "dark": (0.65, 0.25, 0.13),
    "red": (0.99, 0.80, 0.80),
    "metal": (0.60, 0.08, 0.66),
    "steel": (0.62, 0.14, 0.38),
    "grip": (0.07, 0.35, 0.25),
    "leaf": (0.33, 0.65, 0.60),
    "water": (0.56, 0.50, 0.85),
    "sun": (0.14, 0.75, 0.95),
    "fruit": (None, 0.75, 0.80),
    "body": (None, 0.55, 0.70),
    "accent": (None, 0.70, 0.65),
}
"""Hue (``None``: any), saturation and value about which a style varies each role."""


class Style(NamedTuple):
    """Visual style of an image."""

    palette: dict[str, RGB]
    ground: tuple[RGB, RGB]
    pattern: str
    outline: int
    blur: float


class Place(NamedTuple):
    """Where a drawing stands: its centre and size in pixels (for each unit), its turn in radians, and -1 for mirrored."""

    centre: Point
    size: float
    angle: float = 0.0
    side: int = 1

    def put(self, point: Point) -> Point:
        """Return a point of the unit square in pixels."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        x, y = point[0] * self.side * self.size, point[1] * self.size
        return self.centre[0] + x * cosine - y * sine, self.centre[1] + x * sine + y * cosine


def style(number: int) -> Style:
    """Return a style by number: palette, background, outline and softness."""
    rng = Random(f"style {number}")
    palette = {}
    for role, (hue, saturation, value) in ROLES.items():
        turned = rng.random() if hue is None else hue + rng.uniform(-0.04, 0.04)
        palette[role] = _rgb(turned, saturation * rng.uniform(0.6, 1.2), value * rng.uniform(0.85, 1.1))
    hue, value = rng.random(), rng.uniform(0.35, 0.9)
    ground = (
        _rgb(hue, rng.uniform(0.1, 0.5), value),
        _rgb(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.1, 0.5), value + rng.uniform(-0.15, 0.15)),
    )
    pattern = rng.choice(("plain", "gradient", "stripes", "tiles", "spots"))
    return Style(palette, ground, pattern, rng.choice((0, 0, 1, 2)), rng.choice((0.0, 0.0, 0.6, 1.0)))


def draw(kind: str, number: int, rng: Random, *, forbidden: bool = False) -> bytes:
    """Draw an image and encode it as JPEG.

    Args:
        kind: a key of :data:`vigil_data.demo.objects.OBJECTS`.
        number: of the style, below :data:`STYLES`.
        rng: decides object, place, angle, clutter, size and quality.
        forbidden: put a prohibition sign around the object, which negates it.
    """
    look = style(number)
    width = rng.choice((192, 224, 256))
    height = round(width * rng.choice((0.75, 1.0, 1.0, 1.25)))
    image = Image.new("RGB", (width, height), look.ground[0])
    canvas = ImageDraw.Draw(image)
    _ground(canvas, image.size, look, rng)
    short = min(width, height)
    for _ in range(rng.randint(0, 5)):
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        shape = rng.choice(
            (oval("accent", 0, 0, 1), line("accent", 0.3, (-1, 0), (1, 0)), Shape("body", [(-1, 1), (1, 1), (0, -1)]))
        )
        _paint(canvas, [shape], Place(centre, short * rng.uniform(0.02, 0.07), rng.uniform(0, 6.3)), look)
    size = short * (rng.uniform(0.30, 0.36) if forbidden else rng.uniform(0.28, 0.46))
    centre = (width / 2 + rng.uniform(-0.5, 0.5) * (width - 2 * size), height / 2 + rng.uniform(-0.5, 0.5) * (height - 2 * size))
    shapes = rng.choice(OBJECTS[kind])(rng)
    _paint(canvas, shapes, Place(centre, size, rng.uniform(-0.45, 0.45), rng.choice((-1, 1))), look)
    if forbidden:
        ring = [(1.2 * math.cos(a), 1.2 * math.sin(a)) for a in (2 * math.pi * k / 36 for k in range(38))]
        sign = [Shape("red", ring, 0.2), line("red", 0.2, (-0.85, -0.85), (0.85, 0.85))]
        _paint(canvas, sign, Place(centre, size), look)
    if look.blur:
        image = image.filter(ImageFilter.GaussianBlur(look.blur))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=rng.choice((70, 80, 90)))
    return stream.getvalue()


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _ground(canvas: ImageDraw.ImageDraw, size: tuple[int, int], look: Style, rng: Random) -> None:
    width, height = size
    first, second = look.ground
    step = rng.randint(14, 34)
    if look.pattern == "gradient":
        for y in range(height):
            share = y / height
            mixed = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
            canvas.line([(0, y), (width, y)], fill=tuple(mixed))
    elif look.pattern == "stripes":
        for x in range(0, width, 2 * step):
            canvas.rectangle([x, 0, x + step, height], fill=second)
    elif look.pattern == "tiles":
        for x in range(0, width, step):
            for y in range((x // step % 2) * step, height, 2 * step):
                canvas.rectangle([x, y, x + step, y + step], fill=second)
    elif look.pattern == "spots":
        for _ in range(40):
            across, down, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(3, 12)
            canvas.ellipse([across - radius, down - radius, across + radius, down + radius], fill=second)


def _paint(canvas: ImageDraw.ImageDraw, shapes: list[Shape], place: Place, look: Style) -> None:
    outline = look.palette["dark"] if look.outline else None
    for shape in shapes:
        points, colour = [place.put(point) for point in shape.points], look.palette[shape.role]
        if shape.width:
            canvas.line(points, fill=colour, width=max(1, round(shape.width * place.size)), joint="curve")
        else:
            canvas.polygon(points, fill=colour, outline=outline, width=max(1, look.outline))
