"""The page of a sweep: its charts, importances and table, and how it looks in a browser."""

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import optuna
import pytest
from chromium import CONTRAST, Browser
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from simulated_sweeps import SPACE, simulate_trials

from vigil_evaluation.report import curves
from vigil_training.sweeps.report import Objective, SweepView, charts, write_sweep_page
from vigil_training.sweeps.report.page import remarks, trial_row
from vigil_training.sweeps.report.scales import number, parameter_scale, value_scale

AP, LATENCY = Objective("validation/macro_ap", maximize=True), Objective("latency_ms", maximize=False)
FINITE = st.floats(-1e9, 1e9)


@pytest.fixture(scope="module")
def view() -> SweepView:
    return SweepView("comments", (AP,), simulate_trials(40), {"Recipe": "comments.yaml"}, planned=48)


@pytest.fixture(scope="module")
def two() -> SweepView:
    return SweepView("two", (AP, LATENCY), simulate_trials(40, objectives=2, prune=False))


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def made(value: float = 0.0, number: int = 0, **changes: Any) -> FrozenTrial:
    trial = optuna.trial.create_trial(value=value, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)})
    trial.number = number
    for name, value in changes.items():
        setattr(trial, name, value)
    return trial


@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans(), st.integers(3, 9))
def test_value_scale_covers_its_values_in_order_with_few_ticks(values: list[float], exact: bool, ticks: int) -> None:
    scale = value_scale(values, exact=exact, ticks=ticks)
    rounding = 1e-9 * (scale.high - scale.low)
    assert scale.low <= min(values) + rounding
    assert scale.high >= max(values) - rounding
    positions = [scale.position(value) for value in sorted(values)]
    assert positions == sorted(positions)
    assert all(0 <= at <= 1 for at in positions)
    at = [position for position, _ in scale.ticks]
    assert at == sorted(at)
    assert all(0 <= position <= 1 for position in at)
    assert len(at) <= ticks
    if not exact:
        assert (at[0], at[-1]) == (0, 1)


def test_value_scale_skips_values_that_are_not_finite() -> None:
    assert value_scale([inf, nan, 0.2, 0.6, -inf]) == value_scale([0.2, 0.6])
    assert [text for _, text in value_scale([0.21, 0.58]).ticks] == ["0.2", "0.3", "0.4", "0.5", "0.6"]
    assert [text for _, text in value_scale([0, 3], exact=True, whole=True).ticks] == ["0", "1", "2", "3"]
    assert [text for _, text in value_scale([0, 9], exact=True, whole=True).ticks] == ["0", "2", "4", "6", "8"]
    assert [number(value) for value in (-6.8991e-5, 1e-5, -0.25)] == ["\u22126.899e-5", "1e-5", "\u22120.25"]
    assert value_scale([]).position(0.5) == pytest.approx(0.5)


def test_parameter_scale_of_every_kind() -> None:
    log = parameter_scale([FloatDistribution(1e-5, 1e-2, log=True)])
    assert [text for _, text in log.ticks] == ["1e-5", "0.0001", "0.001", "0.01"]
    assert log.position(1e-4) == pytest.approx(1 / 3)
    assert [text for _, text in parameter_scale([IntDistribution(0, 6)]).ticks] == ["0", "2", "4", "6"]
    assert parameter_scale([FloatDistribution(2e-4, 5e-4, log=True)]).ticks[0][1] == "0.0002"
    choices = parameter_scale([CategoricalDistribution((1, True, None)), CategoricalDistribution(("late", 1))])
    assert [text for _, text in choices.ticks] == ["1", "true", "null", "late"]
    assert [choices.position(value) for value in (1, True, None, "late")] == [0.125, 0.375, 0.625, 0.875]
    assert parameter_scale([FloatDistribution(0.3, 0.3)]).ticks == ((0.5, "0.3"),)


@pytest.mark.parametrize("maximize", [True, False])
def test_history_draws_the_best_feasible_value_so_far(maximize: bool) -> None:
    trials = simulate_trials(30, running=2)
    chart = charts.history(view := SweepView("s", (Objective("m", maximize),), trials), 0)
    best, ends = None, []
    for trial in trials:
        if trial.state == TrialState.COMPLETE and trial.system_attrs["constraints:latency"] <= 0:
            best = trial.values[0] if best is None else (max if maximize else min)(best, trial.values[0])
            ends.append(best)
    heights = [float(y) for y in re.findall(r"V([\d.]+)", chart.path)]
    assert len(heights) == len(set(ends))
    assert heights == sorted(heights, reverse=maximize)
    assert view.best[0].values == [best]
    (dot,) = (dot for dot in chart.dots if dot.kind == "best")
    assert dot.y == pytest.approx(heights[-1], abs=0.06)
    kinds = [dot.kind for dot in chart.dots]
    assert kinds.count("pruned") == sum(trial.state == TrialState.PRUNED for trial in trials)
    assert kinds.count("infeasible") == len(view.complete) - len(view.feasible)
    assert len(kinds) == len(trials) - sum(trial.state in (TrialState.FAIL, TrialState.RUNNING) for trial in trials)


def test_pareto_front_is_optunas() -> None:
    trials = simulate_trials(60, objectives=2, seed=3, prune=False, running=0)
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials(trials)
    view = SweepView("s", (AP, LATENCY), trials)
    assert {trial.number for trial in view.best} == {trial.number for trial in study.best_trials}
    assert len(view.best) > 1
    chart = charts.pareto(view, 0, 1)
    assert sum(dot.kind == "best" for dot in chart.dots) == len(view.best) == chart.path.count("V")


def test_importances_find_the_parameter_that_matters(view: SweepView, two: SweepView) -> None:
    shares = view.importances(0)
    assert next(iter(shares)) == "optimizer.lr"
    assert shares["optimizer.lr"] > 0.5
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(two.importances(1))) in ("model.fusion.layers", "model.fusion.kind")
    assert replace(view, trials=view.trials[:8]).importances(0) == {}
    assert SweepView("s", (AP,), [made(0.5, n) for n in range(20)]).importances(0) == {}


def test_parallel_coordinates_pass_below_a_parameter_that_a_trial_lacks(view: SweepView) -> None:
    drawn = charts.parallel(view)
    assert drawn is not None
    assert [axis.short for axis in drawn.axes][:2] == ["optimizer.lr", "text.frozen"]
    assert drawn.unset
    place = [axis.name for axis in drawn.axes].index("model.fusion.layers")
    for line in drawn.lines:
        heights = [float(pair.split()[1]) for pair in line.path[1:].split("L")]
        assert len(heights) == len(SPACE) + 1
        assert (heights[place] == charts.UNSET) == ("model.fusion.layers" not in view.trials[line.trial].params)
    assert drawn.lines[-1].kind == "best"


def test_every_point_lies_in_its_frame(view: SweepView, two: SweepView) -> None:
    drawn = [charts.history(view, 0), *charts.slices(view, 0), *charts.slices(two, 1), charts.pareto(two, 0, 1)]
    learning = charts.learning_curves(view)
    assert learning is not None
    for chart in [*drawn, learning]:
        assert chart.dots
        assert all(curves.x(0) <= dot.x <= curves.x(1) and curves.y(1) <= dot.y <= curves.y(0) for dot in chart.dots)
    assert [line.kind for line in learning.lines][-1] == "best"
    assert {line.kind for line in learning.lines} == {"best", "cut", "rest"}
    assert charts.learning_curves(two) is None


def test_remarks_name_failures_edges_and_what_matters() -> None:
    trials = simulate_trials(30, fail=0.3)
    best = SweepView("s", (AP,), trials).best[0]
    best.params["optimizer.lr"], best.values = 9.9e-3, [0.99]
    view = SweepView("s", (AP,), trials)
    found = {remark.topic: remark.text for remark in remarks(view, [{"optimizer.lr": 0.8}])}
    failed = view.count("FAIL")
    assert found[f"{failed} of 29 trials failed"].endswith("the last: out of memory: <b>allocate</b> 3 GiB.")
    assert "upper end" in remarks(view, [{}])[1].text
    assert found["optimizer.lr"].startswith("has the largest share, 80%")
    infeasible = [made(0.5, n, system_attrs={"constraints:c": 1.0}) for n in range(3)]
    assert remarks(SweepView("s", (AP,), infeasible), [{}])[0].text == "no complete trial satisfies them."


def test_trial_row_has_times_attempts_and_reasons() -> None:
    start = dt.datetime(2026, 1, 1, 12)
    ended = made(number=4, state=TrialState.PRUNED, values=None, intermediate_values={1: 0.25, 2: 0.5})
    ended.datetime_start, ended.datetime_complete = start, start + dt.timedelta(seconds=90)
    ended.user_attrs = {"worker": "n1-7", "attempts": 3, "reason": "worse than others"}
    row = trial_row(SweepView("s", (AP,), [ended]), ended)
    assert (row.state, row.values, row.seconds, row.worker) == ("pruned", (0.5,), 90, "n1-7")
    assert row.note == "worse than others; started 3 times"


@pytest.mark.parametrize("trials", [[], [made(state=TrialState.RUNNING, values=None, datetime_complete=None)]])
@pytest.mark.parametrize("objectives", [(AP,), (AP, LATENCY)])
def test_page_of_a_sweep_that_has_just_begun(
    tmp_path: Path, trials: list[FrozenTrial], objectives: tuple[Objective, ...]
) -> None:
    write_sweep_page(SweepView("new", objectives, trials, planned=24), tmp_path / "sweep.html")
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert page.count("No trial is complete yet") == 2
    assert ("No trial has started yet" in page) == (not trials)
    assert "They need at least 10 complete trials" in page


@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_every_width_has_contrast_and_loads_nothing(
    tmp_path: Path, view: SweepView, two: SweepView, browser: Browser, dark: bool
) -> None:
    hostile = replace(view, name="<script>document.title = 'run'</script>" + "x" * 80)
    for name, of in (("one", hostile), ("two", two)):
        file = tmp_path / f"{name}.html"
        write_sweep_page(of, file)
        page = file.read_text(encoding="utf-8")
        assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
        for width in (390, 900, 1400):
            browser.open(file.as_uri(), width, dark=dark)
            assert browser.evaluate("document.title") == f"Sweep {of.name}"
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate(CONTRAST)["low"] == []
            overlap = """[...document.querySelectorAll("svg text")].filter((text) => {
              const own = text.getBoundingClientRect(), plot = text.ownerSVGElement.getBoundingClientRect();
              return own.left < plot.left - 1 || own.right > plot.right + 1;
            }).map((text) => text.textContent)"""
            assert browser.evaluate(overlap) == []
    assert browser.messages == []


def test_page_marks_a_chosen_trial_everywhere_and_sorts(tmp_path: Path, view: SweepView, browser: Browser) -> None:
    write_sweep_page(view, tmp_path / "sweep.html")
    browser.open((tmp_path / "sweep.html").as_uri())
    best = view.best[0].number
    shown = "[...document.querySelectorAll('#trials tbody tr')].map((row) => Number(row.dataset.trial))"
    assert browser.evaluate(shown)[0] == best
    browser.evaluate("document.querySelector('#trials tbody .pick').click()")
    marked = "[...document.querySelectorAll('.marked')].map((one) => one.dataset.trial)"
    assert set(browser.evaluate(marked)) == {str(best)}
    # The history, the learning curve, the parallel coordinates, the parameters that the trial has, and the row.
    assert len(browser.evaluate(marked)) == 4 + len(view.best[0].params)
    browser.evaluate("document.querySelector('#trials tbody .pick').click()")
    assert browser.evaluate(marked) == []
    browser.evaluate("document.querySelector('#trials thead button').click()")
    assert browser.evaluate(shown) == list(range(40))
