"""Objects of the demonstration's images, each as a few shapes in the square from -1 to 1 with y downwards.

Each subject of the policy has its own objects and benign ones of similar shape (a pencil for a cigarette, letter cubes for
dice, a hair dryer for a pistol). Shapes name a role, not a colour: the image's style determines the colours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random

from vigil_data.demo.shapes import Point, Shape, box, line, oval

Objects = Sequence[Callable[[Random], list[Shape]]]


def cigarette(rng: Random) -> list[Shape]:
    """A lit cigarette with its smoke."""
    smoke = [(0.92 + 0.12 * math.sin(2.1 * k + rng.random()), -0.2 - 0.11 * k) for k in range(8)]
    return [
        line("smoke", 0.07, *smoke),
        box("paper", -0.35, -0.12, 0.85, 0.12),
        box("filter", -0.9, -0.12, -0.35, 0.12),
        box("ember", 0.82, -0.12, 0.98, 0.12),
    ]


def cigarette_pack(rng: Random) -> list[Shape]:
    """An open pack with three to five cigarettes standing out of it."""
    count = rng.randint(3, 5)
    sticks = []
    for k in range(count):
        left = -0.46 + 0.92 * k / count
        top = -0.85 + 0.25 * rng.random()
        sticks += [box("paper", left, top, left + 0.16, 0.0), box("filter", left, top, left + 0.16, top + 0.3)]
    return [
        *sticks,
        box("body", -0.55, -0.3, 0.55, 0.95),
        box("paper", -0.55, 0.05, 0.55, 0.4),
        box("accent", -0.3, 0.12, 0.3, 0.32),
    ]


def tobacco_pipe(rng: Random) -> list[Shape]:
    """A smoker's pipe."""
    smoke = [(0.62 + 0.1 * math.sin(2 * k + rng.random()), -0.35 - 0.1 * k) for k in range(6)]
    return [
        line("smoke", 0.08, *smoke),
        line("wood", 0.12, (-0.95, -0.35), (-0.4, -0.1), (0.2, 0.45), (0.5, 0.55)),
        Shape("wood", [(0.32, -0.25), (0.92, -0.25), (0.88, 0.5), (0.7, 0.7), (0.48, 0.65), (0.36, 0.4)]),
        oval("dark", 0.62, -0.25, 0.3, 0.08),
    ]


def pencil(_: Random) -> list[Shape]:
    """A pencil: long and thin as a cigarette, with a point."""
    return [
        box("body", -0.65, -0.12, 0.6, 0.12),
        box("metal", -0.78, -0.12, -0.65, 0.12),
        box("accent", -0.95, -0.12, -0.78, 0.12),
        Shape("paper", [(0.6, -0.12), (0.95, 0.0), (0.6, 0.12)]),
        Shape("dark", [(0.85, -0.035), (0.95, 0.0), (0.85, 0.035)]),
    ]


def crayons(rng: Random) -> list[Shape]:
    """A box of crayons: shaped as a pack, with coloured points."""
    count = rng.randint(3, 5)
    sticks = []
    for k in range(count):
        left, role = -0.46 + 0.92 * k / count, rng.choice(("accent", "leaf", "water", "fruit"))
        sticks += [
            box(role, left, -0.55, left + 0.16, 0.0),
            Shape(role, [(left, -0.55), (left + 0.08, -0.85), (left + 0.16, -0.55)]),
        ]
    return [*sticks, box("body", -0.55, -0.3, 0.55, 0.95), oval("paper", 0, 0.35, 0.32, 0.25)]


def die(rng: Random, x: float, y: float, size: float) -> list[Shape]:
    """One face of a die with its pips."""
    low, high = -0.5 * size, 0.5 * size
    pips = {
        2: [(low, low), (high, high)],
        3: [(low, low), (0, 0), (high, high)],
        4: [(low, low), (low, high), (high, low), (high, high)],
        5: [(low, low), (low, high), (high, low), (high, high), (0, 0)],
        6: [(low, low), (low, high), (high, low), (high, high), (low, 0), (high, 0)],
    }[rng.randint(2, 6)]
    return [box("paper", x - size, y - size, x + size, y + size), *(oval("dark", x + px, y + py, 0.17 * size) for px, py in pips)]


def dice(rng: Random) -> list[Shape]:
    """Two dice."""
    return [*die(rng, -0.48, -0.3 + 0.3 * rng.random(), 0.42), *die(rng, 0.48, 0.1 + 0.3 * rng.random(), 0.42)]


def suit(rng: Random, x: float, y: float, r: float) -> list[Shape]:
    """A heart, diamond or spade."""
    kind = rng.choice(("heart", "diamond", "spade"))
    if kind == "diamond":
        return [Shape("red", [(x, y - 1.2 * r), (x + 0.8 * r, y), (x, y + 1.2 * r), (x - 0.8 * r, y)])]
    role, up = ("red", 1) if kind == "heart" else ("dark", -1)
    lobes = [oval(role, x + side * 0.45 * r, y - up * 0.3 * r, 0.5 * r) for side in (-1, 1)]
    body = Shape(role, [(x - 0.93 * r, y - up * 0.15 * r), (x + 0.93 * r, y - up * 0.15 * r), (x, y + up * 1.1 * r)])
    return [*lobes, body, *([box(role, x - 0.1 * r, y + 0.2 * r, x + 0.1 * r, y + 1.1 * r)] if kind == "spade" else [])]


def playing_cards(rng: Random) -> list[Shape]:
    """Two playing cards side by side."""
    shapes = []
    for x, y in ((-0.45, -0.08), (0.45, 0.08)):
        shapes += [
            box("paper", x - 0.4, y - 0.62, x + 0.4, y + 0.62),
            *suit(rng, x, y, 0.26),
            *suit(rng, x - 0.26, y - 0.46, 0.09),
        ]
    return shapes


def slot_machine(_: Random) -> list[Shape]:
    """A slot machine that shows three sevens."""
    sevens = [line("red", 0.09, (x - 0.12, -0.2), (x + 0.12, -0.2), (x - 0.04, 0.18)) for x in (-0.42, 0.0, 0.42)]
    return [
        box("body", -0.75, -0.9, 0.75, 0.95),
        box("accent", -0.6, -0.78, 0.6, -0.5),
        box("paper", -0.64, -0.36, 0.64, 0.32),
        *sevens,
        line("metal", 0.08, (0.75, 0.3), (0.95, 0.2), (0.95, -0.4)),
        oval("red", 0.95, -0.45, 0.12),
        box("dark", -0.4, 0.55, 0.4, 0.75),
    ]


def roulette(rng: Random) -> list[Shape]:
    """A roulette wheel from above."""
    turn = rng.random()
    wedges = []
    for k in range(16):
        a, b = (2 * math.pi * (k + end) / 16 + turn for end in (0, 1))
        wedges.append(
            Shape(
                "red" if k % 2 else "dark",
                [(0, 0), (0.8 * math.cos(a), 0.8 * math.sin(a)), (0.8 * math.cos(b), 0.8 * math.sin(b))],
            )
        )
    return [
        oval("wood", 0, 0, 0.95),
        *wedges,
        oval("wood", 0, 0, 0.42),
        oval("metal", 0, 0, 0.12),
        oval("paper", 0.6 * math.cos(turn), 0.6 * math.sin(turn), 0.09),
    ]


def letter_cubes(rng: Random) -> list[Shape]:
    """Two toy cubes with letters where dice have pips."""
    letters: dict[str, list[list[Point]]] = {
        "A": [[(-0.2, 0.25), (0, -0.25), (0.2, 0.25)], [(-0.1, 0.08), (0.1, 0.08)]],
        "T": [[(-0.2, -0.25), (0.2, -0.25)], [(0, -0.25), (0, 0.25)]],
        "H": [[(-0.18, -0.25), (-0.18, 0.25)], [(0.18, -0.25), (0.18, 0.25)], [(-0.18, 0), (0.18, 0)]],
        "Z": [[(-0.2, -0.25), (0.2, -0.25), (-0.2, 0.25), (0.2, 0.25)]],
    }
    shapes = []
    for x, y in ((-0.48, -0.3 + 0.3 * rng.random()), (0.48, 0.1 + 0.3 * rng.random())):
        strokes = letters[rng.choice(sorted(letters))]
        shapes += [
            box("paper", x - 0.42, y - 0.42, x + 0.42, y + 0.42),
            *(line("accent", 0.09, *[(x + px, y + py) for px, py in s]) for s in strokes),
        ]
    return shapes


def postcards(_: Random) -> list[Shape]:
    """Two photographs of a landscape: the frames of playing cards with other content."""
    shapes = []
    for x, y in ((-0.45, -0.08), (0.45, 0.08)):
        shapes += [
            box("paper", x - 0.4, y - 0.62, x + 0.4, y + 0.62),
            box("water", x - 0.33, y - 0.55, x + 0.33, y + 0.35),
            Shape(
                "leaf",
                [(x - 0.33, y + 0.35), (x - 0.1, y - 0.15), (x + 0.08, y + 0.15), (x + 0.2, y - 0.02), (x + 0.33, y + 0.35)],
            ),
            oval("sun", x + 0.15, y - 0.35, 0.1),
        ]
    return shapes


def bicycle_wheel(rng: Random) -> list[Shape]:
    """A wheel with spokes, round as a roulette."""
    turn = rng.random()
    spokes = [
        line("metal", 0.03, (0, 0), (0.85 * math.cos(a), 0.85 * math.sin(a)))
        for a in (2 * math.pi * k / 12 + turn for k in range(12))
    ]
    return [oval("dark", 0, 0, 0.95), oval("paper", 0, 0, 0.8), *spokes, oval("metal", 0, 0, 0.12)]


def pistol(rng: Random) -> list[Shape]:
    """A handgun from the side."""
    length = 0.8 + 0.15 * rng.random()
    return [
        Shape("steel", [(-0.75, -0.45), (length, -0.45), (length, -0.12), (-0.62, -0.12)]),
        Shape("grip", [(-0.7, -0.15), (-0.25, -0.15), (-0.42, 0.75), (-0.85, 0.75)]),
        line("steel", 0.06, (-0.2, -0.1), (-0.1, 0.18), (-0.36, 0.2)),
        box("dark", length - 0.08, -0.55, length, -0.45),
        line("dark", 0.03, (-0.55, -0.38), (-0.55, -0.2), (-0.45, -0.2), (-0.45, -0.38)),
    ]


def dagger(_: Random) -> list[Shape]:
    """A dagger with a guard."""
    return [
        Shape("steel", [(-0.25, -0.14), (0.7, -0.1), (0.98, 0.0), (0.7, 0.1), (-0.25, 0.14)]),
        line("dark", 0.02, (-0.25, 0.0), (0.85, 0.0)),
        box("metal", -0.34, -0.34, -0.22, 0.34),
        box("grip", -0.85, -0.11, -0.34, 0.11),
        oval("metal", -0.88, 0.0, 0.13),
    ]


def rifle(rng: Random) -> list[Shape]:
    """A rifle with stock, magazine and barrel."""
    scope = [box("dark", -0.25, -0.33, 0.25, -0.2)] if rng.random() < 0.5 else []
    return [
        Shape("wood", [(-0.98, -0.05), (-0.4, -0.1), (-0.4, 0.1), (-0.98, 0.3)]),
        box("steel", -0.42, -0.14, 0.3, 0.08),
        box("steel", 0.3, -0.1, 0.98, -0.02),
        Shape("dark", [(-0.05, 0.08), (0.15, 0.08), (0.1, 0.45), (-0.1, 0.45)]),
        Shape("grip", [(-0.38, 0.08), (-0.22, 0.08), (-0.3, 0.38), (-0.46, 0.38)]),
        *scope,
    ]


def hair_dryer(rng: Random) -> list[Shape]:
    """A hair dryer: the outline of a pistol, with a round back and a wide mouth."""
    length = 0.7 + 0.15 * rng.random()
    return [
        oval("body", -0.3, -0.28, 0.45),
        Shape("body", [(-0.3, -0.6), (length, -0.45), (length, -0.1), (-0.3, 0.05)]),
        Shape("accent", [(length, -0.55), (length + 0.18, -0.6), (length + 0.18, 0.05), (length, 0.0)]),
        Shape("body", [(-0.5, 0.1), (-0.15, 0.1), (-0.2, 0.8), (-0.5, 0.8)]),
        oval("paper", -0.3, -0.28, 0.2),
    ]


def paint_brush(_: Random) -> list[Shape]:
    """A paint brush, long as a dagger."""
    return [
        box("wood", -0.9, -0.08, 0.2, 0.08),
        box("metal", 0.2, -0.16, 0.5, 0.16),
        Shape("accent", [(0.5, -0.16), (0.8, -0.12), (0.97, 0.05), (0.8, 0.14), (0.5, 0.16)]),
    ]


def umbrella(_: Random) -> list[Shape]:
    """A closed umbrella, long as a rifle."""
    return [
        Shape("body", [(-0.55, -0.06), (0.6, -0.2), (0.6, 0.2), (-0.55, 0.06)]),
        line("metal", 0.05, (-0.95, 0.0), (-0.55, 0.0)),
        line("wood", 0.09, (0.6, 0.0), (0.9, 0.0), (0.96, 0.15), (0.85, 0.28), (0.75, 0.2)),
    ]


def qr_code(rng: Random) -> list[Shape]:
    """A square code with three finders."""
    cell = 1.7 / 15
    finders = [(-0.85, -0.85), (0.85 - 5 * cell, -0.85), (-0.85, 0.85 - 5 * cell)]
    shapes = [box("paper", -0.95, -0.95, 0.95, 0.95)]
    for row in range(15):
        for column in range(15):
            if rng.random() < 0.48:
                x, y = -0.85 + column * cell, -0.85 + row * cell
                shapes.append(box("dark", x, y, x + cell, y + cell))
    for x, y in finders:
        shapes += [
            box("paper", x - 0.3 * cell, y - 0.3 * cell, x + 5.3 * cell, y + 5.3 * cell),
            box("dark", x, y, x + 5 * cell, y + 5 * cell),
        ]
        shapes += [
            box("paper", x + cell, y + cell, x + 4 * cell, y + 4 * cell),
            box("dark", x + 1.7 * cell, y + 1.7 * cell, x + 3.3 * cell, y + 3.3 * cell),
        ]
    return shapes


def login_form(_: Random) -> list[Shape]:
    """A form that asks for a password, with a padlock."""
    return [
        box("paper", -0.75, -0.95, 0.75, 0.95),
        box("accent", -0.75, -0.95, 0.75, -0.78),
        line("dark", 0.08, (-0.16, -0.4), (-0.16, -0.6), (0.16, -0.6), (0.16, -0.4)),
        box("metal", -0.24, -0.42, 0.24, -0.05),
        box("smoke", -0.55, 0.12, 0.55, 0.38),
        *(oval("dark", -0.42 + 0.17 * k, 0.25, 0.055) for k in range(6)),
        box("accent", -0.55, 0.55, 0.55, 0.8),
    ]


def bank_card(_: Random) -> list[Shape]:
    """A payment card with chip, number and name."""
    digits = [
        box("paper", -0.75 + 0.4 * group + 0.085 * k, 0.08, -0.69 + 0.4 * group + 0.085 * k, 0.2)
        for group in range(4)
        for k in range(4)
    ]
    return [
        box("body", -0.92, -0.58, 0.92, 0.58),
        box("sun", -0.72, -0.32, -0.4, -0.06),
        *digits,
        box("paper", -0.75, 0.33, -0.1, 0.42),
        oval("red", 0.5, 0.38, 0.13),
        oval("sun", 0.66, 0.38, 0.13),
    ]


def fruit(_: Random) -> list[Shape]:
    """An apple."""
    return [
        oval("fruit", -0.25, 0.15, 0.5, 0.6),
        oval("fruit", 0.25, 0.15, 0.5, 0.6),
        line("wood", 0.08, (0, -0.35), (0.08, -0.75)),
        oval("leaf", 0.3, -0.65, 0.24, 0.1),
    ]


def cup(_: Random) -> list[Shape]:
    """A mug."""
    return [
        line("body", 0.13, (0.4, -0.2), (0.8, -0.15), (0.8, 0.3), (0.4, 0.4)),
        Shape("body", [(-0.6, -0.5), (0.5, -0.5), (0.4, 0.7), (-0.5, 0.7)]),
        oval("wood", -0.05, -0.5, 0.55, 0.14),
    ]


def house(_: Random) -> list[Shape]:
    """A house with door and window."""
    return [
        box("body", -0.65, -0.2, 0.65, 0.85),
        Shape("red", [(-0.85, -0.2), (0, -0.9), (0.85, -0.2)]),
        box("wood", -0.15, 0.3, 0.2, 0.85),
        box("water", 0.3, 0.0, 0.52, 0.25),
        box("water", -0.52, 0.0, -0.28, 0.25),
    ]


def tree(_: Random) -> list[Shape]:
    """A tree."""
    return [
        box("wood", -0.1, 0.2, 0.12, 0.95),
        oval("leaf", 0, -0.25, 0.6),
        oval("leaf", -0.4, 0.05, 0.35),
        oval("leaf", 0.4, 0.05, 0.35),
    ]


def fish(_: Random) -> list[Shape]:
    """A fish."""
    return [
        oval("water", -0.1, 0, 0.65, 0.38),
        Shape("water", [(0.45, 0), (0.95, -0.4), (0.95, 0.4)]),
        oval("paper", -0.45, -0.1, 0.1),
        oval("dark", -0.45, -0.1, 0.05),
    ]


def car(_: Random) -> list[Shape]:
    """A car from the side."""
    return [
        Shape(
            "body",
            [(-0.95, 0.0), (-0.55, -0.05), (-0.3, -0.45), (0.35, -0.45), (0.6, -0.05), (0.95, 0.05), (0.95, 0.4), (-0.95, 0.4)],
        ),
        Shape("water", [(-0.4, -0.05), (-0.24, -0.36), (0.0, -0.36), (0.0, -0.05)]),
        Shape("water", [(0.08, -0.05), (0.08, -0.36), (0.3, -0.36), (0.46, -0.05)]),
        *(oval("dark", x, 0.4, 0.22) for x in (-0.5, 0.5)),
        *(oval("metal", x, 0.4, 0.1) for x in (-0.5, 0.5)),
    ]


def flower(_: Random) -> list[Shape]:
    """A flower with six petals."""
    petals = [oval("accent", 0.4 * math.cos(a), -0.3 + 0.4 * math.sin(a), 0.24) for a in (math.pi * k / 3 for k in range(6))]
    return [line("leaf", 0.08, (0, -0.2), (0.05, 0.95)), oval("leaf", 0.25, 0.5, 0.22, 0.1), *petals, oval("sun", 0, -0.3, 0.22)]


OBJECTS: Mapping[str, Objects] = {
    "tobacco": (cigarette, cigarette_pack, tobacco_pipe),
    "tobacco_lookalike": (pencil, crayons),
    "gambling": (dice, playing_cards, slot_machine, roulette),
    "gambling_lookalike": (letter_cubes, postcards, bicycle_wheel),
    "weapons": (pistol, dagger, rifle),
    "weapons_lookalike": (hair_dryer, paint_brush, umbrella),
    "account": (qr_code, login_form, bank_card),
    "plain": (fruit, cup, house, tree, fish, car, flower),
}
"""Kind of image to its possible objects."""
