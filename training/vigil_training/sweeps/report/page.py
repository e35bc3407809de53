"""The page of a sweep as one self-contained file."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from vigil_data.filesystem import StrPath
from vigil_evaluation.report import curves
from vigil_evaluation.report.rendering import render_page
from vigil_training.sweeps.report import charts
from vigil_training.sweeps.report.scales import number, parameter_scale, shown
from vigil_training.sweeps.report.view import MIN_TRIALS_FOR_IMPORTANCES, SweepView

HERE = Path(__file__).parent

EDGE = 0.02
"""A best value within this share of the range from its end lies at the edge of the space."""

MANY_FAILED = 0.1
"""Share of failed trials from which the page says so first."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that stands out, and the section that shows it."""

    section: str
    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial in the table; numbers are formatted, and their values sort the table.

    Attributes:
        number: its number.
        state: its state.
        best: whether it is the best, or on the Pareto front.
        values: objectives; of a pruned trial the last value that it reported.
        parameters: parameters, as a recipe writes them; empty for those that it does not have.
        seconds: time from its start to its end.
        worker: who ran it last.
        note: why it failed or was pruned, and how often it was started if that is more than once.
    """

    number: int
    state: str
    best: bool
    values: tuple[float | None, ...]
    parameters: tuple[tuple[str, object], ...]
    seconds: float | None
    worker: str
    note: str


def write_sweep_page(view: SweepView, to: StrPath) -> None:
    """Write the page.

    Args:
        view: the sweep.
        to: HTML file.

    Raises:
        Failure: if it cannot be written.
    """
    importances = [view.importances(i) for i in range(len(view.objectives))]
    render_page(
        HERE / "page.html.jinja",
        to,
        own_style=HERE / "page.css",
        own_script=HERE / "page.js",
        view=view,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        remarks=remarks(view, importances),
        histories=_histories(view),
        importances=importances,
        min_trials=MIN_TRIALS_FOR_IMPORTANCES,
        parallel=charts.parallel(view),
        slices=[charts.slices(view, i) for i in range(len(view.objectives))] if view.complete else [],
        fronts=[charts.pareto(view, *pair) for pair in combinations(range(len(view.objectives)), 2)] if view.complete else [],
        rows=_rows(view),
        short=charts.short_names([*view.parameters, *(of.metric for of in view.objectives)]),
        counts=[(name, count) for name in TrialState.__members__ if (count := view.count(name))],
        curves=curves,
        edges=(charts.TOP, charts.BOTTOM, charts.UNSET),
        number=number,
        duration=format_duration,
    )


def remarks(view: SweepView, importances: list[dict[str, float]]) -> list[Remark]:
    """Return what stands out: many failures, a best value at the edge of the space, what matters most."""
    found = []
    ended = len(view.trials) - view.count("RUNNING") - view.count("WAITING")
    failed = [trial for trial in view.trials if trial.state == TrialState.FAIL]
    if ended and len(failed) >= MANY_FAILED * ended:
        reason = next((str(of.user_attrs["reason"]) for of in reversed(failed) if of.user_attrs.get("reason")), "")
        last = f"; the last: {reason}" if reason else ""
        found.append(Remark("trials", f"{len(failed)} of {ended} trials failed", f"the best is the best of the others{last}."))
    if view.complete and not view.feasible:
        found.append(Remark("trials", "Constraints", "no complete trial satisfies them."))
    if len(view.objectives) == 1:
        for trial in view.best:
            for name, edge in _edges(trial):
                text = (
                    f"the best trial has {shown(trial.params[name])}, the {edge} end of its range; {edge} values were not tried."
                )
                found.append(Remark("slices", name, text))
    for objective, shares in zip(view.objectives, importances, strict=True):
        if shares:
            name, share = next(iter(shares.items()))
            text = f"has the largest share, {share:.0%}, of what distinguishes the best trials in {objective.metric}."
            found.append(Remark("importances", name, text))
    return found


def trial_row(view: SweepView, trial: FrozenTrial) -> TrialRow:
    """Return a trial's line of the table."""
    attempts = trial.user_attrs.get("attempts", 1)
    notes = [str(trial.user_attrs.get("reason") or "")]
    notes += [f"started {attempts} times"] if isinstance(attempts, int) and attempts > 1 else []
    start, end = trial.datetime_start, trial.datetime_complete
    return TrialRow(
        trial.number,
        charts.state(trial),
        view.is_best(trial),
        tuple(charts.value_of(trial, i) for i in range(len(view.objectives))),
        tuple((shown(trial.params[name]), trial.params[name]) if name in trial.params else ("", "") for name in view.parameters),
        (end - start).total_seconds() if start is not None and end is not None else None,
        str(trial.user_attrs.get("worker", "")),
        "; ".join(filter(None, notes)),
    )


def format_duration(seconds: float) -> str:
    """Format seconds as ``h:mm:ss``."""
    return str(timedelta(seconds=round(seconds)))


def _histories(view: SweepView) -> list[charts.Chart]:
    made = [charts.history(view, i) for i in range(len(view.objectives))] if view.complete else []
    learning = charts.learning_curves(view)
    return made if learning is None else [*made, learning]


def _rows(view: SweepView) -> list[TrialRow]:
    """Return the table: complete trials, the best first, and then the others by number."""
    first = list(reversed(charts.ranked_trials(view)))
    numbers = {trial.number for trial in first}
    return [trial_row(view, trial) for trial in [*first, *(trial for trial in view.trials if trial.number not in numbers)]]


def _edges(trial: FrozenTrial) -> list[tuple[str, str]]:
    """Return numeric parameters whose value lies at an end of its range, with the end: ``lower`` or ``upper``."""
    found = []
    for name, distribution in trial.distributions.items():
        if isinstance(distribution, FloatDistribution | IntDistribution) and not distribution.single():
            scale = parameter_scale([distribution])
            low, value, high = (scale.position(of) for of in (distribution.low, trial.params[name], distribution.high))
            place = (value - low) / (high - low)
            if place <= EDGE or place >= 1 - EDGE:
                found.append((name, "lower" if place <= EDGE else "upper"))
    return found
