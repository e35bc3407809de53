"""Errors of many rows stay few lines, and lines stay lines."""

import pytest

from vigil_data.errors import Problems, UserError, one_line


def lines(problems: Problems) -> list[str]:
    with pytest.raises(UserError) as caught:
        problems.raise_if_any()
    return list(caught.value.lines)


def test_problems_are_collected_by_message() -> None:
    problems = Problems()
    problems.raise_if_any()
    assert not problems
    for row in range(1, 4):
        problems.add(f"f:{row}", "id is missing")
    problems.add("f:2", "text is 5")
    problems.add("f:3", "text is 5")
    assert lines(problems) == ["f:1: id is missing (and in 2 more rows)", "f:2: text is 5 (and in 1 more row)"]


def test_problems_hold_a_bounded_number_of_messages() -> None:
    problems = Problems()
    for row in range(10_000):
        problems.add(f"f:{row}", f"target is {row}")
    assert len(problems._first) == Problems.MOST_MESSAGES
    found = lines(problems)
    assert (len(found), found[-1]) == (21, "… and 9,980 more")


def test_one_line_escapes_control_characters() -> None:
    assert one_line("a\nb\x1b[31m\x9b \té ü") == "a\\nb\\x1b[31m\\x9b \\té ü"
