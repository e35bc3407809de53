"""Trials of simulated sweeps: objectives with a known optimum, pruned, failed, infeasible and running trials."""

import datetime as dt
import random
from math import log10
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

SPACE: dict[str, BaseDistribution] = {
    "optimizer.lr": FloatDistribution(1e-5, 1e-2, log=True),
    "model.encoders.text.frozen": IntDistribution(0, 6),
    "model.fusion.kind": CategoricalDistribution(("attention", "late", "gated-with-a-long-name")),
    "model.fusion.layers": IntDistribution(1, 4),
    "training.batch.size": CategoricalDistribution((8, 16, 32, None)),
}
START = dt.datetime(2026, 11, 29, 12, 0, 0)


def point(rng: random.Random) -> dict[str, Any]:
    """Draw a point; ``model.fusion.layers`` exists only with attention."""
    drawn: dict[str, Any] = {
        "optimizer.lr": 10 ** rng.uniform(-5, -2),
        "model.encoders.text.frozen": rng.randint(0, 6),
        "model.fusion.kind": rng.choice(("attention", "late", "gated-with-a-long-name")),
        "training.batch.size": rng.choice((8, 16, 32, None)),
    }
    if drawn["model.fusion.kind"] == "attention":
        drawn["model.fusion.layers"] = rng.randint(1, 4)
    return drawn


def score(drawn: dict[str, Any]) -> float:
    """Return a metric in which only the learning rate matters much; its optimum is at 1e-3."""
    return round(0.82 - 0.08 * (log10(drawn["optimizer.lr"]) + 3) ** 2 - 0.002 * drawn["model.encoders.text.frozen"], 6)


def simulate_trials(
    number: int = 40, *, objectives: int = 1, seed: int = 0, prune: bool = True, fail: float = 0.05, running: int = 1
) -> list[FrozenTrial]:
    """Return trials as a sweep of ``number`` leaves them; the last ``running`` have not ended."""
    rng, made = random.Random(seed), []
    for at in range(number):
        drawn = point(rng)
        value = score(drawn)
        curve = {step: round(value * (1 - 0.5 * 0.6 ** (step / 50)) + rng.gauss(0, 0.004), 5) for step in range(50, 501, 50)}
        state = TrialState.COMPLETE
        if at >= number - running:
            state, curve = TrialState.RUNNING, dict(list(curve.items())[:3])
        elif rng.random() < fail:
            state, curve = TrialState.FAIL, dict(list(curve.items())[:1])
        elif prune and at > 4 and value < 0.7:
            state, curve = TrialState.PRUNED, dict(list(curve.items())[: rng.choice((1, 2, 4))])
        start = START + dt.timedelta(seconds=40 * at)
        trial = optuna.trial.create_trial(
            state=TrialState.COMPLETE,
            values=[
                value,
                5.0 + 3 * drawn.get("model.fusion.layers", 0.5) + rng.random(),
                2e6 * (7 - drawn["model.encoders.text.frozen"]),
            ][:objectives],
            params=drawn,
            distributions={name: SPACE[name] for name in drawn},
            intermediate_values=curve if objectives == 1 else {},
            user_attrs={"worker": f"n{at % 4}-{at % 4}", "run": f"{at:04d}", "attempts": 1 + (at == 3)},
            system_attrs={"constraints:latency": 1.0 if at % 11 == 10 else -1.0},
        )
        trial.number, trial.state, trial.datetime_start, trial.datetime_complete = (
            at,
            state,
            start,
            start + dt.timedelta(seconds=30 + at),
        )
        if state == TrialState.FAIL:
            trial.user_attrs["reason"] = "out of memory: <b>allocate</b> 3 GiB"
        if state != TrialState.COMPLETE:
            trial.values = None
        if state == TrialState.RUNNING:
            trial.datetime_complete = None
        made.append(trial)
    return made
