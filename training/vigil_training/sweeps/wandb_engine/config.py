"""Configuration of a W&B sweep, from a sweep file; what W&B's sweeps cannot express is refused."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vigil_training.sweeps.space import encode, grid_values
from vigil_training.sweeps.specs import Asha, Dimension

if TYPE_CHECKING:
    from vigil_training.sweeps.sweep_file import SweepPlan
    from vigil_training.sweeps.sweep_folder import SweepFolder

_METHODS = {"tpe": "bayes", "random": "random", "grid": "grid"}
"""Sampler to W&B's method; its Bayesian search is a Gaussian process of its own."""


def engine_problems(plan: "SweepPlan") -> Iterator[str]:
    """Yield a line for each key that W&B's sweeps cannot express."""
    spec = plan.spec

    def refuse(what: str, *path: str | int) -> str:
        return f"{plan.origin(*path)}: {'.'.join(map(str, path))}: engine wandb {what}"

    if plan.recipe is None:
        yield refuse("trains a recipe; take engine vigil for a function", "function")
    elif plan.recipe.tracking.mode in ("offline", "disabled"):
        mode = plan.recipe.tracking.mode
        yield f"{plan.origin('engine')}: engine: wandb needs the trials' metrics; tracking.mode must be online, not {mode}"
    if spec.sampler.kind not in _METHODS:
        yield refuse(f"has no sampler {spec.sampler.kind}; take tpe, random or grid, or engine vigil", "sampler", "kind")
    for key in ("seed", "startup"):
        if getattr(spec.sampler, key, None) != getattr(type(spec.sampler)(), key, None):
            yield refuse("draws the points on W&B's server, without this; leave it out", "sampler", key)
    if spec.pruner.kind not in ("none", "asha"):
        yield refuse(f"has no pruner {spec.pruner.kind}; take asha or none, or engine vigil", "pruner", "kind")
    if len(spec.metric) > 1:
        yield refuse("optimizes one metric; take engine vigil for several", "metric")
    if spec.constraints:
        yield refuse("has no constraints; take engine vigil", "constraints")
    for key, dimension in spec.space.items():
        if dimension.when:
            yield refuse("has no conditional keys; take engine vigil", "space", key, "when")


def wandb_config(folder: "SweepFolder") -> dict[str, Any]:
    """Return the configuration that ``wandb.sweep`` takes; its agents start ``trial.py`` with a point as a file."""
    spec, plan = folder.plan.spec, folder.plan
    grid = spec.sampler.kind == "grid"
    [metric] = spec.metric
    config: dict[str, Any] = {
        "name": spec.name,
        "method": _METHODS[spec.sampler.kind],
        "metric": {"name": metric.name, "goal": metric.sense},
        "parameters": {key: _parameter(dimension, grid) for key, dimension in spec.space.items()},
        "command": [
            sys.executable,
            "-m",
            "vigil_training.sweeps.wandb_engine.trial",
            str(folder.path.absolute()),
            "${args_json_file}",
        ],
        "run_cap": plan.trials,
    }
    if isinstance(spec.pruner, Asha):
        config["early_terminate"] = {"type": "hyperband", "min_iter": spec.pruner.min_epochs, "eta": spec.pruner.reduction}
    return config


def _parameter(dimension: Dimension, grid: bool) -> dict[str, Any]:
    if grid or dimension.choice is not None or dimension.step is not None:
        return {"values": [encode(dimension, value) for value in grid_values(dimension)]}
    if dimension.int_ is not None:
        return {"distribution": "int_uniform", "min": dimension.int_[0], "max": dimension.int_[1]}
    low, high = dimension.log or dimension.float_ or (0.0, 1.0)
    return {"distribution": "log_uniform_values" if dimension.log else "uniform", "min": low, "max": high}
