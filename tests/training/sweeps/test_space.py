"""The search space as values."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vigil_training.sweeps.space import decode, encode, grid_points, is_active, points_to_check, random_point
from vigil_training.sweeps.specs import Dimension


def space(**values: dict[str, object]) -> dict[str, Dimension]:
    import json

    return {key: Dimension.model_validate_json(json.dumps(value), strict=True) for key, value in values.items()}


SPACE = space(
    kind={"choice": ["mean", "transformer", {"a": 1}]},
    layers={"int": [1, 6], "step": 2, "when": {"kind": ["transformer", {"a": 1}]}},
    heads={"choice": [2, 4], "when": {"layers": 3}},
    lr={"log": [1e-5, 1e-3], "points": 3},
    dropout={"float": [0, 0.3], "step": 0.1},
)


def test_grid_points_has_each_combination_once_without_the_keys_whose_condition_does_not_hold() -> None:
    expected = []
    for kind, lr, dropout in itertools.product(["mean", "transformer", {"a": 1}], (1e-5, 1e-4, 1e-3), (0.0, 0.1, 0.2, 0.3)):
        for layers in [None] if kind == "mean" else [1, 3, 5]:
            expected += [(kind, layers, heads, lr, dropout) for heads in ([2, 4] if layers == 3 else [None])]
    rounded = [
        (point["kind"], point.get("layers"), point.get("heads"), round(point["lr"], 9), round(point["dropout"], 9))
        for point in grid_points(SPACE)
    ]
    assert sorted(map(repr, rounded)) == sorted(map(repr, expected))


def test_points_to_check_has_every_extreme_value() -> None:
    points = list(points_to_check(SPACE))
    for key, values in {
        "kind": SPACE["kind"].choice or (),
        "layers": (1, 5),
        "heads": (2, 4),
        "lr": (1e-5, 1e-3),
        "dropout": (0, 0.3),
    }.items():
        assert all(any(point.get(key) == value for point in points) for value in values), key


@given(st.integers(0, 2**32 - 1))
def test_random_point_has_the_keys_whose_condition_holds_and_values_within_bounds(seed: int) -> None:
    point = random_point(SPACE, np.random.default_rng(seed))
    assert list(point) == [key for key, dimension in SPACE.items() if is_active(dimension, point)]
    assert point["kind"] in (SPACE["kind"].choice or ())
    assert point.get("layers", 1) in (1, 3, 5)
    assert 1e-5 <= point["lr"] <= 1e-3
    assert round(point["dropout"], 9) in (0, 0.1, 0.2, 0.3)


def test_decode_returns_what_was_encoded() -> None:
    values = ["mean", None, 3, 0.5, True, {"a": [1, 2]}, [1, "x"]]
    dimension = space(key={"choice": values})["key"]
    assert [decode(dimension, encode(dimension, value)) for value in dimension.choice or ()] == values
