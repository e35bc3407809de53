"""The search space as values: conditions, points to check, the grid, and how values are kept in Optuna's trials.

A point is a mapping of keys to values, with the keys whose condition holds.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vigil_training.sweeps.specs import Dimension

Space = Mapping[str, Dimension]
Point = dict[str, Any]


def is_active(dimension: Dimension, point: Mapping[str, Any]) -> bool:
    """Return whether a key is searched, given the values of the keys above it."""
    return all(
        key in point and json.dumps(point[key]) in map(json.dumps, wanted if isinstance(wanted, list) else [wanted])
        for key, wanted in dimension.when.items()
    )


def encode(dimension: Dimension, value: Any) -> Any:
    """Return a value as Optuna keeps it: choices that are lists or mappings as JSON text."""
    return json.dumps(value) if dimension.choice is not None and isinstance(value, list | dict | tuple) else value


def decode(dimension: Dimension, stored: Any) -> Any:
    """Return the value of a parameter of an Optuna trial."""
    if dimension.choice is None:
        return stored
    return next(value for value in dimension.choice if encode(dimension, value) == stored)


def decode_point(space: Space, params: Mapping[str, Any]) -> Point:
    """Return the point of a trial's parameters, in the order of the space."""
    return {key: decode(dimension, params[key]) for key, dimension in space.items() if key in params}


def extremes(dimension: Dimension) -> list[Any]:
    """Return the values to check: all choices, or the lowest and the highest number."""
    if dimension.choice is not None:
        return list(dimension.choice)
    if dimension.int_ is not None:
        low, high, step = *dimension.int_, int(dimension.step or 1)
        return [low, low + (high - low) // step * step]
    return list(dimension.float_ or dimension.log or ())


def grid_values(dimension: Dimension) -> list[Any]:
    """Return the values that the grid takes."""
    if dimension.choice is not None:
        return list(dimension.choice)
    if dimension.int_ is not None:
        low, high = dimension.int_
        return list(range(low, high + 1, int(dimension.step or 1)))
    if dimension.log is not None:
        return [float(value) for value in np.geomspace(*dimension.log, dimension.points or 2)]
    lowest, highest = dimension.float_ or (0.0, 0.0)
    if dimension.points is not None:
        return [float(value) for value in np.linspace(lowest, highest, dimension.points)]
    step = dimension.step or (highest - lowest)
    return [lowest + step * n for n in range(math.floor((highest - lowest) / step + 1e-9) + 1)]


def grid_points(space: Space) -> Iterator[Point]:
    """Yield every combination of values once, in order; keys whose condition does not hold are left out."""
    seen = set()
    for values in itertools.product(*(grid_values(dimension) for dimension in space.values())):
        point = with_conditions(space, dict(zip(space, values, strict=True)))
        if (text := json.dumps(point)) not in seen:
            seen.add(text)
            yield point


def grid_size(space: Space) -> int:
    """Return an upper bound of the number of points of the grid, without making them."""
    return math.prod(len(grid_values(dimension)) for dimension in space.values())


def random_point(space: Space, random: np.random.Generator) -> Point:
    """Return a point drawn uniformly, on the scale of each key."""
    return with_conditions(space, all_values(space, random))


def all_values(space: Space, random: np.random.Generator) -> Point:
    """Return a random value of every key, also of those whose condition does not hold."""
    return {key: _random_value(dimension, random) for key, dimension in space.items()}


def points_to_check(space: Space, count: int = 8) -> Iterator[Point]:
    """Yield points in which every extreme value of every key occurs, and ``count`` random ones."""
    random = np.random.default_rng(0)
    for key, dimension in space.items():
        for value in extremes(dimension):
            yield _with_value(space, key, value, random)
    for _ in range(count):
        yield random_point(space, random)


def _with_value(space: Space, key: str, value: Any, random: np.random.Generator) -> Point:
    """Return a random point in which a key has a value, and the keys of its condition have values with which it is searched."""
    forced: Point = {key: value}
    for name in reversed(list(space)):
        if name in forced:
            for other, wanted in space[name].when.items():
                forced.setdefault(other, wanted[0] if isinstance(wanted, list) else wanted)
    point: Point = {}
    for name, dimension in space.items():
        if is_active(dimension, point):
            point[name] = forced[name] if name in forced else _random_value(dimension, random)
    return point


def _random_value(dimension: Dimension, random: np.random.Generator) -> Any:
    if dimension.choice is not None:
        return dimension.choice[int(random.integers(len(dimension.choice)))]
    if dimension.int_ is not None:
        low, high = dimension.int_
        step = int(dimension.step or 1)
        return low + step * int(random.integers((high - low) // step + 1))
    if dimension.log is not None:
        low_log, high_log = map(math.log, dimension.log)
        return min(max(math.exp(random.uniform(low_log, high_log)), dimension.log[0]), dimension.log[1])
    lowest, highest = dimension.float_ or (0.0, 0.0)
    if dimension.step is None:
        return float(random.uniform(lowest, highest))
    return lowest + dimension.step * int(random.integers(math.floor((highest - lowest) / dimension.step + 1e-9) + 1))


def with_conditions(space: Space, values: Point) -> Point:
    """Return the point of a value of every key: the keys whose condition holds."""
    point: Point = {}
    for key, dimension in space.items():
        if is_active(dimension, point):
            point[key] = values[key]
    return point
