"""What a sweep has found so far: its trials, the best or the Pareto front, and the recipe of a trial. Optuna is not needed."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vigil_data.errors import UserError
from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
from vigil_training.sweeps.event_log import EventLog, TrialRecord
from vigil_training.sweeps.liveness import dead_workers, heartbeat_age, newest_attempt
from vigil_training.sweeps.space import Point
from vigil_training.sweeps.specs import SweepSpec
from vigil_training.sweeps.sweep_file import overrides_of
from vigil_training.sweeps.sweep_folder import SweepFolder


@dataclass(frozen=True, slots=True)
class TrialResult:
    """A trial as `vigil sweep status` shows it.

    Attributes:
        number: from 0.
        state: running, lost, waiting, complete, pruned or failed.
        point: key to value.
        values: value of each metric of the sweep; of a pruned trial the last one; ``None`` if it has none.
        epochs: validations that it has reported.
        seconds: since it started, or that it took.
        heartbeat: seconds since its worker showed life; ``None`` if it does not run.
        reason: why it was pruned or has failed.
        violated: constraints on metrics that it violates.
        attempts: how often it was started.
    """

    number: int
    state: str
    point: Point
    values: tuple[float, ...] | None
    epochs: int
    seconds: float | None
    heartbeat: float | None
    reason: str
    violated: tuple[str, ...]
    attempts: int


def read_results(folder: SweepFolder) -> list[TrialResult]:
    """Return the trials of a sweep by number."""
    log = folder.read()
    dead = dead_workers(log, sorted(log.workers))
    return [_result(folder.plan.spec, log, dead, trial) for trial in log.trials]


def best_results(spec: SweepSpec, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the best trial, or with several metrics the Pareto front, of those that are complete and violate no constraint."""
    signs = [1.0 if metric.sense == "maximize" else -1.0 for metric in spec.metric]
    candidates = [
        (tuple(sign * value for sign, value in zip(signs, result.values, strict=True)), result)
        for result in results
        if result.state == "complete" and result.values is not None and not result.violated
    ]
    front = [
        (gains, result)
        for gains, result in candidates
        if not any(other != gains and all(o >= g for o, g in zip(other, gains, strict=True)) for other, _ in candidates)
    ]
    front.sort(key=lambda entry: (tuple(-gain for gain in entry[0]), entry[1].number))
    return [result for _, result in front] if len(signs) > 1 else [result for _, result in front[:1]]


def recipe_text(folder: SweepFolder, result: TrialResult) -> str:
    """Return the recipe of a trial as YAML that `vigil train` takes; a tag names the sweep and the trial.

    Raises:
        UserError: if the sweep is one of a function.
    """
    plan = folder.plan
    if plan.recipe is None:
        raise UserError(f"{folder.path}: is a sweep of a function, which has no recipe; its point is {json.dumps(result.point)}")
    tags = [*plan.recipe.tracking.tags, f"sweep:{plan.spec.name}/{result.number:04}"]
    resolved = resolve_recipe(plan.recipe, overrides_of({**result.point, "tracking.tags": tags}), source=str(folder.file))
    found = ", ".join(f"{metric.name} {value:.6g}" for metric, value in zip(plan.spec.metric, result.values or (), strict=False))
    lines = [
        f"# Trial {result.number} of {folder.path}: {found or result.state}",
        *(f"#   {text}" for text in overrides_of(result.point)),
    ]
    return "\n".join(lines) + "\n" + dump_recipe(resolved)


def _result(spec: SweepSpec, log: EventLog, dead: set[str], trial: TrialRecord) -> TrialResult:
    user, system = trial.merged("user"), trial.merged("system")
    violated = [key.partition(":")[2] for key, value in system.items() if key.startswith("constraints:") and value > 0]
    started = min((each.started for each in trial.attempts.values() if each.started is not None), default=None)
    heartbeat = None
    state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RELEASED": "waiting"}.get(trial.state, "waiting")
    if trial.state == "RUNNING":
        attempt = newest_attempt(log, trial)
        heartbeat = heartbeat_age(log, trial.number, attempt)
        state = "lost" if heartbeat > spec.stale_after or log.claimant(trial.number, attempt) in dead else "running"
    seconds = user.get("seconds")
    if seconds is None and started is not None and state == "running":
        seconds = time.time() - started
    return TrialResult(
        number=trial.number,
        state=state,
        point=_point(spec, trial.merged("params")),
        values=None if trial.values is None else tuple(trial.values),
        epochs=len(trial.merged("intermediate")),
        seconds=seconds,
        heartbeat=heartbeat,
        reason=user.get("reason", ""),
        violated=tuple(violated),
        attempts=max(trial.last + 1, 1),
    )


def _point(spec: SweepSpec, params: dict[str, tuple[float, str]]) -> Point:
    """Return the point of parameters as Optuna stores them: choices by their index."""
    point: dict[str, Any] = {}
    for key, dimension in spec.space.items():
        if key not in params:
            continue
        stored = params[key][0]
        if dimension.choice is not None:
            point[key] = dimension.choice[int(stored)]
        else:
            point[key] = int(stored) if dimension.int_ is not None else stored
    return point
