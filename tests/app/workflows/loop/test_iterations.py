"""Iterations of a loop: every step once, in order, also when any of them is cut off; outcomes; jobs; mistakes in the file."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from vigil.workflows.loop.iterations import LoopSurroundings, read_iterations, run_loop
from vigil.workflows.loop.specs import Loop, read_loop
from vigil.workflows.loop.steps import plan_steps
from vigil.workflows.release_gate import RegressionError
from vigil_data.errors import Failure, UserError


class Killed(BaseException):
    """Ends the process where it is raised."""


class Outside:
    """What the loop asks of, with a log of the commands that ran."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.ran = loop, []
        self.answers, self.newest, self.job, self.trained = (10, 10), date(2026, 11, 28), None, False
        self.breaks: dict[str, BaseException] = {}
        self.kills_after: str | None = None
        self.continued: list[str] = []
        self.ends_at_once = False

    def run(self, step, number, total):
        if step.name in self.breaks:
            raise self.breaks[step.name]
        self.ran.append(step.name)
        if step.command[0] == "submit" and not self.ends_at_once:
            self.job = "77"
        if step.name == self.kills_after:
            raise Killed

    def go(self):
        surroundings = LoopSurroundings(
            self.run,
            lambda _: self.answers,
            lambda: self.newest,
            lambda: "digest",
            lambda _: self.job,
            lambda _: self.trained,
            lambda _, job: self.continued.append(job),
        )
        return run_loop(self.loop, surroundings)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    (tmp_path / "reviewed").touch()
    values = {
        "name": "comments",
        "folder": str(tmp_path / "loop"),
        "traffic": "traffic",
        "dataset": "datasets/comments",
        "retrain": {"recipe": "recipe.yaml", "overrides": ["training.epochs=1"]},
        "promote": {"automatic": True},
        "by": "language",
        "reference": "2026-10-01..2026-10-28",
        "policy": "policy.yaml",
    }
    return Loop.model_validate(values)


def names(loop: Loop) -> list[str]:
    return [step.name for step in plan_steps(loop, Path("0001"), date(2026, 11, 22), date(2026, 11, 28))]


COMMANDS = [
    *("sample", "mine", "prevalence", "metrics", "agreement of sample", "agreement of mined", "drift"),
    *("train", "policy", "evaluate", "export", "compare", "promote", "report"),
]
"""Steps that run a command; answers are merged only where there is a file of them, which these tests do not write."""


def test_run_loop_runs_every_step_once_and_records_the_outcome(loop: Loop) -> None:
    outside = Outside(loop)
    iteration, waiting = outside.go()
    assert waiting is None
    assert outside.ran == COMMANDS
    assert (iteration.outcome, iteration.start, iteration.end) == ("promoted", "2026-11-22", "2026-11-28")
    assert list(iteration.seconds) == names(loop)
    assert read_iterations(loop) == [iteration]
    assert outside.go() == (iteration, "the next iteration begins when the traffic of 2026-12-05 is complete")
    outside.newest = date(2026, 12, 6)
    second, _ = outside.go()
    assert (second.number, second.start, second.end) == (2, "2026-11-29", "2026-12-05")
    assert outside.ran == COMMANDS * 2


def test_run_loop_merges_the_answers_that_exist(loop: Loop) -> None:
    outside = Outside(loop)
    outside.answers = (10, 9)
    assert outside.go()[1].splitlines()[0].endswith("sample-reviews.jsonl: 9 of 10 questions of sample.jsonl are answered")
    (Path(loop.folder) / "0001" / "mined-reviews.jsonl").touch()
    outside.answers = (10, 10)
    outside.go()
    assert [name for name in outside.ran if name.startswith("merge")] == ["merge mined"]


@pytest.mark.parametrize("cut_off", COMMANDS)
def test_run_loop_resumes_at_the_step_that_was_cut_off(loop: Loop, cut_off: str) -> None:
    outside = Outside(loop)
    outside.kills_after = cut_off  # after the command's work, before it is recorded
    with pytest.raises(Killed):
        outside.go()
    outside.kills_after = None
    iteration, waiting = outside.go()
    assert waiting is None
    assert iteration.outcome == "promoted"
    place = COMMANDS.index(cut_off)
    assert outside.ran == [*COMMANDS[: place + 1], *COMMANDS[place:]]


@pytest.mark.parametrize("then_killed_at", [None, "report"])
def test_run_loop_does_not_promote_a_rejected_challenger(loop: Loop, then_killed_at: str | None) -> None:
    outside = Outside(loop)
    outside.breaks["compare"] = RegressionError("bundle does not pass: 2 of 40 comparisons are worse\nhate: AUROC …")
    outside.kills_after = then_killed_at
    if then_killed_at is not None:
        with pytest.raises(Killed):
            outside.go()
        outside.kills_after = None
    iteration, _ = outside.go()
    assert (iteration.outcome, iteration.rejected) == ("rejected", "bundle does not pass: 2 of 40 comparisons are worse")
    assert "promote" not in outside.ran
    assert outside.ran[-1] == "report"


def test_run_loop_repeats_a_failed_step(loop: Loop) -> None:
    outside = Outside(loop)
    outside.breaks["export"] = Failure("decisions differ")
    with pytest.raises(Failure, match="decisions differ"):
        outside.go()
    outside.breaks.clear()
    assert outside.go()[0].outcome == "promoted"
    assert outside.ran == COMMANDS


def test_run_loop_follows_the_keys_with_which_its_iteration_began(loop: Loop) -> None:
    outside = Outside(loop)
    outside.answers = (10, 0)
    outside.go()
    changed = Outside(loop.model_copy(update={"retrain": None, "reference": None}))
    iteration, _ = changed.go()
    assert iteration.outcome == "promoted"
    assert outside.ran + changed.ran == COMMANDS


def test_run_loop_without_retraining_ends_with_the_estimates(loop: Loop) -> None:
    outside = Outside(loop.model_copy(update={"retrain": None}))
    assert outside.go()[0].outcome == "measured"
    assert not {"train", "compare", "promote"} & set(outside.ran)


def test_run_loop_leaves_promotion_to_its_user_by_default(loop: Loop) -> None:
    outside = Outside(loop.model_copy(update={"promote": type(loop.promote)()}))
    assert outside.go()[0].outcome == "accepted"
    assert "promote" not in outside.ran


def test_run_loop_submits_the_training_once_and_waits_for_its_job(loop: Loop) -> None:
    outside = Outside(Loop.model_validate({**loop.model_dump(mode="json"), "slurm": {"nodes": 2, "time": "2:00:00"}}))
    run = Path(loop.folder) / "0001" / "run"
    for _ in range(3):
        iteration, waiting = outside.go()
        assert (iteration.job, waiting) == ("77", f"job 77 trains {run}")
    assert outside.ran.count("train") == 1
    assert outside.continued == ["77"] * 3, "each call asks, so that a kill after the submission loses nothing"
    outside.job = None  # it ended without a finished run
    assert outside.go()[1] == f"job 77 trains {run}"
    assert outside.ran.count("train") == 2
    outside.trained = True
    assert outside.go()[0].outcome == "promoted"
    assert outside.ran.count("train") == 2


def test_run_loop_of_a_job_that_ends_at_once(loop: Loop) -> None:
    outside = Outside(Loop.model_validate({**loop.model_dump(mode="json"), "slurm": {}}))
    outside.ends_at_once = True
    iteration, waiting = outside.go()
    assert (iteration.job, outside.continued) == (None, [])
    assert waiting is not None
    assert waiting.endswith("has ended already; call this again")


def test_run_loop_without_a_champion(loop: Loop) -> None:
    surroundings = LoopSurroundings(
        lambda *_: None, lambda _: (0, 0), lambda: date(2026, 11, 28), lambda: None, lambda _: None, bool, lambda *_: None
    )
    with pytest.raises(
        UserError, match=r"models/champion: no such bundle; make one with `vigil promote BUNDLE --without-comparison"
    ):
        run_loop(loop, surroundings)
    assert read_iterations(loop) == []
    assert run_loop(loop, replace(surroundings, newest_day=lambda: None)) == (None, "traffic has no complete day of traffic yet")


def test_plan_steps_commands_of_a_complete_loop(loop: Loop, tmp_path: Path) -> None:
    folder = Path(loop.folder) / "0003"
    commands = {step.name: " ".join(step.command) for step in plan_steps(loop, folder, date(2026, 11, 22), date(2026, 11, 28))}
    assert commands["sample"] == (
        f"monitor sample traffic --design prevalence --budget 500 --to {folder}/sample.jsonl --seed 3 "
        "--from 2026-11-22 --until 2026-11-28"
    )
    assert commands["train"] == (
        f"train recipe.yaml --run {folder}/run data.dataset=datasets/comments init_from=models/champion training.epochs=1"
    )
    assert commands["drift"].endswith(f"--queue {folder}/sample.jsonl --reviews {folder}/sample-reviews.jsonl")
    early = plan_steps(loop, folder, date(2026, 10, 22), date(2026, 10, 28))
    assert "drift" not in {step.name for step in early}, "there is no day after the reference"
    assert commands["promote"].endswith(f"--comparison {folder}/comparison --without-experiment")


def test_read_loop_names_every_mistake_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "loop.yaml"
    file.write_text("name: a b\nfolder: f\ntraffic: t\ndataset: d\nretrain: null\nmine: {budget: 0}\nmerge: {rules: [newest]}\n")
    with pytest.raises(UserError) as error:
        read_loop(file)
    text = "\n".join(error.value.lines)
    assert [f"{file}:{line}" in text for line in (1, 6, 7)] == [True] * 3


def test_read_iterations_refuses_a_damaged_state(loop: Loop) -> None:
    (Path(loop.folder) / "0001").mkdir(parents=True)
    state = Path(loop.folder) / "0001" / "state.json"
    state.write_text("{")
    with pytest.raises(UserError, match=r"state\.json: not JSON"):
        read_iterations(loop)
    state.write_text(json.dumps({"number": 1}))
    with pytest.raises(UserError, match=r"state\.json"):
        read_iterations(loop)
