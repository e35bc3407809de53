"""Constraints: Python's own arithmetic is the truth."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_training.sweeps.constraints import parse_constraint

NAMES = ("a.b", "a.b_c", "validation/recall@1/text-image", "x")


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(NAMES) | st.floats(0.5, 9).map(str) | st.integers(1, 9).map(str))
    left, right = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    return f"({left} {draw(st.sampled_from('+-*/'))} {right})"


@given(expressions(), expressions(), st.sampled_from(["<=", ">="]), st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_violation_is_the_difference_of_the_sides(left: str, right: str, comparison: str, numbers: list[float]) -> None:
    text, values = f"x * 0 + {left} {comparison} {right}", dict(zip(NAMES, numbers, strict=True))
    python = text
    for name in sorted(NAMES, key=len, reverse=True):
        python = python.replace(name, f"V[{NAMES.index(name)}]")
    low, high = python.split(comparison) if comparison == "<=" else python.split(comparison)[::-1]
    try:
        expected = eval(f"({low}) - ({high})", {"V": numbers})
    except ArithmeticError:
        expected = math.inf
    found = parse_constraint(text, NAMES).violation(values)
    assert found == pytest.approx(math.inf if math.isnan(expected) else expected)


def test_violation_is_zero_where_a_key_is_not_searched() -> None:
    assert parse_constraint("a.b + x <= 1", NAMES).violation({"x": 5}) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.b <= 1 <= 2", "must compare two sums"),
        ("a.b", "must compare two sums"),
        ("a.b < 1", "must compare two sums"),
        ("1 <= 2", "must compare two sums"),
        ("a.b ** 2 <= 1", "must compare two sums"),
        ("a.b(1) <= 1", "must compare two sums"),
        ("__import__('os') <= a.b", "neither"),
        ("a.c <= 1", r"a\.c is neither a number in the recipe nor a metric \(did you mean a\.b"),
    ],
)
def test_parse_constraint_rejects(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_constraint(text, NAMES)
