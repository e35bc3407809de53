"""``training.profile``: a trace and a table of the steps that were asked for, and the numbers of a run without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run


def read_steps(run: Path) -> list[str]:
    """Return the optimizer steps of a trace, with at least one matrix product within each."""
    events = json.loads((run / "profile" / "rank-0.json").read_text())["traceEvents"]
    steps = sorted((e["ts"], e["dur"], e["name"]) for e in events if e.get("name", "").startswith("optimizer step"))
    products = [e["ts"] for e in events if e.get("name") == "aten::addmm"]
    for start, duration, _ in steps:
        assert any(start <= at <= start + duration for at in products)
    return [name for _, _, name in steps if name]


def test_profile_records_the_steps_of_its_window_and_changes_no_number(
    make_recipe: Callable[..., Recipe],
    train: Callable[[Recipe, Path], Run],
    trained: Run,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    run = train(make_recipe(training__profile={"start": 3, "steps": 2}), tmp_path / "run").path
    assert dict.fromkeys(read_steps(run)) == dict.fromkeys(["optimizer step 4", "optimizer step 5"])
    table = (run / "profile" / "rank-0.txt").read_text()
    assert "aten::addmm" in table
    assert "Self CPU" in table
    assert "recorded steps 4 to 5" in (run / "train.log").read_text()
    assert_same_run(trained.path, run)


def test_profile_writes_what_was_recorded_when_training_ends(
    make_recipe: Callable[..., Recipe], train: Callable[[Recipe, Path], Run], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"training__max_steps": 3, "training__accumulate": 2}
    run = train(make_recipe(training__profile={"start": 1, "steps": 50}, **changes), tmp_path / "run").path
    assert dict.fromkeys(read_steps(run)) == dict.fromkeys(["optimizer step 2", "optimizer step 3"])


def test_recipe_refuses_a_profile_after_the_last_step(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ValidationError, match=r"training\.profile\.start is 5, but training\.max_steps ends the run after 5"):
        make_recipe(training__profile={"start": 5}, training__max_steps=5)
