"""Sweep files: mistakes with file and line, and points as recipes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vigil_data.errors import UserError
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import dump_recipe, read_recipe, resolve_recipe
from vigil_training.sweeps.results import TrialResult, recipe_text
from vigil_training.sweeps.sweep_file import SweepPlan, read_sweep
from vigil_training.sweeps.sweep_folder import open_sweep

REPOSITORY = Path(__file__).parents[3]

SWEEP = """\
name: tiny
recipe: tiny.yaml
metric: validation/macro_ap
trials: 4
space:
  optimizer.lr: {log: [1e-4, 1e-2]}
  model.fusion.kind: {choice: [mean, transformer]}
  model.fusion.layers: {int: [1, 3], when: {model.fusion.kind: transformer}}
"""


@pytest.fixture
def read(tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> Callable[..., SweepPlan]:
    """A function that reads the sweep above, with lines replaced."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(dump_recipe(resolve_recipe(make_recipe())))

    def read(**lines: str) -> SweepPlan:
        text = SWEEP
        for old, new in lines.items():
            kept = [line for line in text.splitlines() if not line.lstrip().startswith(f"{old}:")]
            text = "\n".join([*kept, *([new] if new else [])]) + "\n"
        Path("sweep.yaml").write_text(text)
        return read_sweep("sweep.yaml")

    return read


def test_recipe_of_a_point_has_its_values_its_name_and_the_sweeps_group(read: Callable[..., SweepPlan]) -> None:
    point: dict[str, Any] = {"optimizer.lr": 1e-3, "model.fusion.kind": "transformer", "model.fusion.layers": 3}
    recipe = read().recipe_of(point, 7).recipe
    assert (recipe.name, recipe.tracking.group, recipe.optimizer.lr) == ("tiny-0007", "tiny", 1e-3)
    assert recipe.model.model_dump()["fusion"]["layers"] == 3
    mean = read().recipe_of({"optimizer.lr": 1e-3, "model.fusion.kind": "mean"}).recipe
    assert mean.model.model_dump()["fusion"] == {"kind": "mean"}


REJECTED: list[tuple[dict[str, str], str]] = [
    ({"metric": "metric: validation/macro_app"}, r":8: metric: 'validation/macro_app' is not .*did you mean validation/macro_ap"),
    ({"optimizer.lr": "  optimizer.lrr: {log: [1e-4, 1e-2]}"}, r":8: space.optimizer.lrr: .*did you mean lr\?"),
    ({"optimizer.lr": "  optimizer.lr: {float: [-1, 1]}"}, r":8: space.optimizer.lr: must be greater than 0, not -"),
    ({"optimizer.lr": "  optimizer.lr: {log: [0, 1]}"}, r":8: space.optimizer.lr.log: the lowest value must be above 0"),
    ({"optimizer.lr": "  optimizer.lr: {log: [1, 1e-2]}"}, r":8: .*must be below the highest, not 1 and 0.01"),
    ({"optimizer.lr": "  optimizer.lr: {int: [1, 2], choice: [1]}"}, r":8: .*one of choice, .* and log, not choice and int"),
    (
        {"optimizer.lr": "  model.width: {choice: [16, 15]}"},
        r":8: space.model.width 15 is not a multiple of model.fusion.heads 2",
    ),
    ({"trials": ""}, r"sweep.yaml:1: trials is missing"),
    (
        {"model.fusion.kind": "  model.fusion.kind: {choice: [mean]}"},
        r":7: space.model.fusion.layers.when.model.fusion.kind: is not a key of the space above",
    ),
    (
        {"model.fusion.layers": "  model.fusion.layers:\n    int: [1, 3]\n    when:\n      model.fusion.kind: [mean, sum]"},
        r":11: space.model.fusion.layers.when.model.fusion.kind: is never \"sum\"",
    ),
    (
        {"model.fusion.layers": "  model.fusion.layers:\n    int: [1, 3]\n    when:\n      model.fusion.kinds: transformer"},
        r":11: space.model.fusion.layers.when.model.fusion.kinds: is not a key of the space .*did you mean model.fusion.kind\?",
    ),
    (
        {"trials": "trials: 4\nconstraints: [optimizer.lr <= 1, optimizer.lrr <= 1]"},
        r":9: constraints\[1\]: .*did you mean optimizer",
    ),
    ({"trials": "sampler: {kind: grid}"}, r":5: space.optimizer.lr: sampler grid needs points, or a step"),
    ({"trials": "trials: 4\npruner: {kind: asha}", "metric": "metric: [latency_ms, validation/macro_ap]"}, "several metrics"),
    ({"recipe": "recipe: tinny.yaml"}, r"there is no file tinny.yaml \(did you mean tiny.yaml\?\)"),
    ({"recipe": "function: a:b\nrecipe: tiny.yaml"}, r"recipe: give a recipe to train or a function"),
    ({"trials": "trials: 4\nspaces: {}"}, r"sweep.yaml:9: spaces: .*did you mean space\?"),
    ({"optimizer.lr": "  name: {choice: [a, b]}"}, r"sweep.yaml:8: space.name: is the same in all trials"),
]


@pytest.mark.parametrize(("lines", "message"), REJECTED)
def test_read_sweep_rejects(read: Callable[..., SweepPlan], lines: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(**lines)


def test_folder_of_another_sweep_is_refused_and_trials_may_be_added(read: Callable[..., SweepPlan]) -> None:
    folder = open_sweep(read(), "sweep")
    assert folder.plan.recipe == read().recipe
    assert open_sweep(read(trials="trials: 9"), "sweep").plan.trials == 9
    with pytest.raises(UserError, match=r"sweep: holds another sweep(.|\n)*space.optimizer.lr.log: the folder has .*, the sweep"):
        open_sweep(read(**{"optimizer.lr": "  optimizer.lr: {log: [1e-4, 1e-1]}"}), "sweep")
    Path("other").mkdir()
    Path("other/file").touch()
    with pytest.raises(UserError, match="other: not a sweep folder and not empty"):
        open_sweep(read(), "other")


def test_recipe_of_the_best_trial_is_read_back_and_names_the_sweep(read: Callable[..., SweepPlan]) -> None:
    folder = open_sweep(read(), "sweep")
    point: dict[str, Any] = {"optimizer.lr": 2e-3, "model.fusion.kind": "mean"}
    result = TrialResult(3, "complete", point, (0.75,), 3, 1.0, None, "", (), 1)
    Path("best.yaml").write_text(recipe_text(folder, result))
    assert "# Trial 3 of sweep: validation/macro_ap 0.75" in Path("best.yaml").read_text()
    recipe = read_recipe(Path("best.yaml"))
    assert (recipe.optimizer.lr, recipe.tracking.tags) == (2e-3, ("sweep:tiny/0003",))


def test_shipped_sweeps_are_valid_and_their_schema_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    from vigil_training.sweeps.json_schema import sweep_schema_text

    monkeypatch.chdir(REPOSITORY)
    folder = Path("recipes/sweeps")
    assert (folder / "schema.json").read_text() == sweep_schema_text(), "vigil sweep schema --to recipes/sweeps/schema.json"
    for file in sorted(folder.glob("*.yaml")):
        assert read_sweep(file).trials > 1
    assert json.loads(sweep_schema_text())["properties"]["space"]
