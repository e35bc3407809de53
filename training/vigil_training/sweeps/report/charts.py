"""Charts of a sweep as coordinates; the template draws them as SVG in the colours of the theme."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from vigil_evaluation.report import curves
from vigil_training.sweeps.report.scales import Scale, number, parameter_scale, shown, value_scale
from vigil_training.sweeps.report.view import SweepView, is_feasible

MAX_CURVE_POINTS = 200
"""Intermediate values drawn of one trial, evenly spaced; its last is always drawn."""

VALUE_TICKS = 9
"""Limit of the round steps on an axis of values, whose ends and middle are labelled; a finer step makes a shorter axis."""

MAX_TICK_CHARACTERS = 14
"""Longer names of choices are cut on an axis; their tooltips have them in full."""

MAX_NAME_CHARACTERS = 17
"""The same for names of the axes of the parallel coordinates."""

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True, slots=True)
class Dot:
    """A trial at a point.

    Attributes:
        trial: its number.
        x: abscissa.
        y: ordinate.
        kind: CSS class: ``best``, ``dot`` for complete, ``pruned``, ``infeasible`` or ``failed``.
        text: tooltip.
    """

    trial: int
    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A trial as a line: SVG path, CSS class and tooltip."""

    trial: int
    path: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart in the coordinates of :mod:`vigil_evaluation.report.curves`.

    Attributes:
        title: what is drawn.
        across: positions in [0, 1] and texts of the horizontal axis.
        across_title: what the horizontal axis shows.
        up: texts of the vertical axis at its bottom, middle and top.
        dots: trials.
        lines: trials.
        path: SVG path of the best value so far, or of the Pareto front.
        summary: the chart in a sentence, for readers of the text.
    """

    title: str
    across: tuple[tuple[float, str], ...]
    across_title: str
    up: tuple[str, str, str]
    dots: tuple[Dot, ...] = ()
    lines: tuple[Line, ...] = ()
    path: str = ""
    summary: str = ""


@dataclass(frozen=True, slots=True)
class ParallelAxis:
    """A vertical axis of the parallel coordinates: abscissa, name, its short form, positions and texts of its ticks."""

    x: float
    name: str
    short: str
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Parallel coordinates.

    Attributes:
        width: width of the view box.
        axes: the parameters and the objectives.
        lines: complete trials, the best last, so that they are drawn on top.
        unset: whether some trial lacks a parameter; its line passes below that axis.
    """

    width: float
    axes: tuple[ParallelAxis, ...]
    lines: tuple[Line, ...]
    unset: bool


TOP, BOTTOM, UNSET = 34.0, 214.0, 236.0
"""Ordinates of the parallel coordinates: the ends of the axes, and the place of a parameter that a trial does not have."""

_AXIS_WIDTH = 118.0


def state(trial: FrozenTrial) -> str:
    """Return the state of a trial in one word."""
    return "infeasible" if trial.state == TrialState.COMPLETE and not is_feasible(trial) else _STATES[trial.state]


def history(view: SweepView, index: int) -> Chart:
    """Draw the objective of each trial by its number, and the best so far; pruned trials at their last value before that."""
    objective = view.objectives[index]
    points = [(trial, value) for trial in view.trials if (value := value_of(trial, index)) is not None]
    up = value_scale((value for _, value in points), ticks=VALUE_TICKS)
    last = max(len(view.trials) - 1, view.planned - 1 if view.planned else 0, 1)
    across = value_scale([0, last], exact=True, whole=True)
    best, corners = None, []
    for trial in view.feasible:
        value = trial.values[index]
        if best is None or objective.better(value, best):
            corners.append((_x(across, trial.number), _y(up, value)))
            best = value
    path = "".join(f"{'L' if i else 'M'}{x:.1f} {corners[i - 1][1] if i else y:.1f}V{y:.1f}" for i, (x, y) in enumerate(corners))
    if corners:
        path += f"H{_x(across, view.trials[-1].number):.1f}"
    found = f"; the best is {number(best)}" if best is not None else ""
    return Chart(
        f"{objective.metric} of each trial",
        across.ticks,
        "trial",
        _vertical(up),
        dots=tuple(
            _dot(view, trial, (_x(across, trial.number), _y(up, value)), f"{objective.metric} {number(value)}")
            for trial, value in points
        ),
        path=path,
        summary=f"{objective.metric} of {len(points)} trials{found}",
    )


def learning_curves(view: SweepView) -> Chart | None:
    """Draw the intermediate values of every trial; ``None`` if there are none."""
    reported = [trial for trial in view.trials if any(map(isfinite, trial.intermediate_values.values()))]
    if not reported:
        return None
    steps = [step for trial in reported for step in trial.intermediate_values]
    across = value_scale([0, *steps], exact=True, whole=True)
    reports = (value for trial in reported for value in trial.intermediate_values.values())
    up = value_scale(reports, ticks=VALUE_TICKS)
    lines, dots = [], []
    for trial in sorted(reported, key=view.is_best):
        values = [(step, value) for step, value in sorted(trial.intermediate_values.items()) if isfinite(value)]
        kept = [*values[:: -(-len(values) // MAX_CURVE_POINTS)], values[-1]]
        kind = "best" if view.is_best(trial) else _curve_kind(trial)
        path = _path((_x(across, step), _y(up, value)) for step, value in kept)
        lines.append(Line(trial.number, path, kind, f"trial {trial.number}, {state(trial)}, {len(values)} values"))
        if len(values) == 1 or trial.state != TrialState.COMPLETE:
            step, value = values[-1]
            text = f"trial {trial.number}, {state(trial)} at {step}: {number(value)}"
            dots.append(Dot(trial.number, _x(across, step), _y(up, value), _kind(view, trial), text))
    metric = view.objectives[0].metric
    pruned = sum(trial.state == TrialState.PRUNED for trial in reported)
    return Chart(
        f"{metric} while they ran",
        across.ticks,
        "step",
        _vertical(up),
        dots=tuple(dots),
        lines=tuple(lines),
        summary=f"{metric} of {len(reported)} trials while they ran, {pruned} of them pruned",
    )


def slices(view: SweepView, index: int) -> list[Chart]:
    """Draw an objective over each parameter that varies, in the order of the parameters."""
    metric, made = view.objectives[index].metric, []
    values = {trial.number: value for trial in view.trials if (value := value_of(trial, index)) is not None}
    up = value_scale(values.values(), ticks=VALUE_TICKS)
    for name in view.parameters:
        across = parameter_scale([trial.distributions[name] for trial in view.trials if name in trial.distributions])
        having = [trial for trial in view.trials if name in trial.params and trial.number in values]
        having.sort(key=view.is_best)
        dots = [
            _dot(
                view,
                trial,
                (_x(across, trial.params[name]), _y(up, values[trial.number])),
                f"{metric} {number(values[trial.number])}, {name} {shown(trial.params[name])}",
            )
            for trial in having
        ]
        ticks = tuple((at, _cut(text)) for at, text in across.ticks)
        summary = f"{metric} over {name} of {len(having)} trials"
        made.append(
            Chart(name, ticks, "logarithmic" if across.logarithmic else "", _vertical(up), dots=tuple(dots), summary=summary)
        )
    return made


def pareto(view: SweepView, left: int, right: int) -> Chart:
    """Draw two objectives against each other, with the steps of their front.

    Args:
        view: the sweep.
        left: index of the objective of the horizontal axis.
        right: index of that of the vertical axis.
    """
    across = value_scale(trial.values[left] for trial in view.complete)
    up = value_scale((trial.values[right] for trial in view.complete), ticks=VALUE_TICKS)
    one, other = view.objectives[left], view.objectives[right]
    # With more than two objectives, a trial of the front need not be on the front of these two.
    front: list[FrozenTrial] = []
    for trial in sorted(view.best, key=lambda trial: trial.values[left], reverse=one.maximize):
        if not front or other.better(trial.values[right], front[-1].values[right]):
            front.append(trial)
    corners = [(_x(across, trial.values[left]), _y(up, trial.values[right])) for trial in front]
    path = "".join(f"{'L' if i else 'M'}{x:.1f} {corners[i - 1][1] if i else y:.1f}V{y:.1f}" for i, (x, y) in enumerate(corners))
    dots = [
        _dot(
            view,
            trial,
            (_x(across, trial.values[left]), _y(up, trial.values[right])),
            f"{one.metric} {number(trial.values[left])}, {other.metric} {number(trial.values[right])}",
        )
        for trial in sorted(view.complete, key=view.is_best)
    ]
    return Chart(
        f"{other.metric} over {one.metric}",
        across.ticks,
        f"{one.metric} ({'higher' if one.maximize else 'lower'} is better)",
        _vertical(up),
        dots=tuple(dots),
        path=path,
        summary=f"{other.metric} over {one.metric} of {len(dots)} trials; the front has {len(view.best)}",
    )


def parallel(view: SweepView) -> Parallel | None:
    """Draw the complete trials as lines through their parameters and objectives; ``None`` if there are none."""
    if not view.complete or not view.parameters:
        return None
    scales: list[tuple[str, Scale]] = [
        (name, parameter_scale([trial.distributions[name] for trial in view.trials if name in trial.distributions]))
        for name in view.parameters
    ]
    objectives = [value_scale(trial.values[i] for trial in view.complete) for i in range(len(view.objectives))]
    scales += zip((of.metric for of in view.objectives), objectives, strict=True)
    short = short_names([name for name, _ in scales])
    axes = tuple(
        ParallelAxis(
            _AXIS_WIDTH * (i + 0.5),
            name,
            _cut(short[name], MAX_NAME_CHARACTERS),
            tuple((_height(at), _cut(text)) for at, text in scale.ticks),
        )
        for i, (name, scale) in enumerate(scales)
    )
    ranked = ranked_trials(view)
    lines, unset = [], False
    for place, trial in enumerate(ranked):
        values: list[Any] = [trial.params.get(name, _MISSING) for name in view.parameters] + list(trial.values)
        unset = unset or _MISSING in values
        at = [
            (axis.x, UNSET if value is _MISSING else _height(scale.position(value)))
            for axis, (_, scale), value in zip(axes, scales, values, strict=True)
        ]
        kind = "best" if view.is_best(trial) else "good" if place >= 0.75 * len(ranked) else "rest"
        texts = [f"{of.metric} {number(value)}" for of, value in zip(view.objectives, trial.values, strict=True)]
        lines.append(Line(trial.number, _path(at), kind, f"trial {trial.number}: {', '.join(texts)}"))
    return Parallel(_AXIS_WIDTH * len(axes), axes, tuple(lines), unset)


def value_of(trial: FrozenTrial, index: int) -> float | None:
    """Return a trial's objective, of a pruned trial its last intermediate value; ``None`` if there is none that is finite."""
    if trial.state == TrialState.COMPLETE:
        value = trial.values[index]
    elif trial.state == TrialState.PRUNED and index == 0 and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    else:
        return None
    return value if isfinite(value) else None


def ranked_trials(view: SweepView) -> list[FrozenTrial]:
    """Return the complete trials, the best last: those on the front, then by the first objective; infeasible ones come first."""

    def key(trial: FrozenTrial) -> tuple[bool, bool, float]:
        sign = 1 if view.objectives[0].maximize else -1
        return is_feasible(trial), view.is_best(trial), sign * trial.values[0]

    return sorted(view.complete, key=key)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return names to their last parts: two, or as many as distinguish all of them."""
    for parts in range(2, 1 + max((name.count(".") + 1 for name in names), default=1)):
        short = {name: ".".join(name.split(".")[-parts:]) for name in names}
        if len(set(short.values())) == len(set(names)):
            return short
    return {name: name for name in names}


class _Missing:
    """A parameter that a trial does not have; a parameter's value may be null."""


_MISSING = _Missing()


def _dot(view: SweepView, trial: FrozenTrial, at: tuple[float, float], values: str) -> Dot:
    return Dot(trial.number, *at, _kind(view, trial), f"trial {trial.number}, {state(trial)}: {values}")


def _kind(view: SweepView, trial: FrozenTrial) -> str:
    return "best" if view.is_best(trial) else "dot" if (name := state(trial)) == "complete" else name


def _curve_kind(trial: FrozenTrial) -> str:
    return "cut" if trial.state in (TrialState.PRUNED, TrialState.FAIL) else "rest"


def _x(scale: Scale, value: Any) -> float:
    return curves.x(scale.position(value))


def _y(scale: Scale, value: float) -> float:
    return curves.y(scale.position(value))


def _height(position: float) -> float:
    return round(BOTTOM - position * (BOTTOM - TOP), 1)


def _vertical(scale: Scale) -> tuple[str, str, str]:
    return number(scale.low), number((scale.low + scale.high) / 2), number(scale.high)


def _path(points: Iterable[tuple[float, float]]) -> str:
    through: Sequence[str] = [f"{x:.1f} {y:.1f}" for x, y in points]
    return "M" + "L".join(through) if len(through) > 1 else ""


def _cut(text: str, limit: int = MAX_TICK_CHARACTERS) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
