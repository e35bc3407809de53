"""Points and pruning by Optuna's samplers and pruners.

A point is drawn when its trial has its number, by a sampler seeded with the sweep's seed and that number: with sampler random, or
grid, trial n has the same point with any number of workers.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from vigil_data.errors import UserError
from vigil_training.sweeps.constraints import Constraint
from vigil_training.sweeps.space import Point, Space, decode, encode, extremes, grid_points, is_active
from vigil_training.sweeps.specs import Asha, Dimension, GaussianProcess, Grid, Median, PrunerSpec, Random, SweepSpec, Tpe

MAX_DRAWS = 200
"""Points that are drawn for a trial until one satisfies the constraints."""


def draw_point(
    study: optuna.Study, number: int, spec: SweepSpec, constraints: Sequence[Constraint], fixed: Mapping[str, Any]
) -> Point:
    """Draw the point of a trial.

    Args:
        study: the study, with the trial, which has no parameters yet.
        number: number of the trial.
        spec: space, sampler and seed.
        constraints: those over keys alone.
        fixed: values of other keys in the constraints.

    Raises:
        UserError: if no point that satisfies the constraints is found.
    """
    if isinstance(spec.sampler, Grid):
        return grid_point(spec, number, constraints, fixed)
    trial = study.get_trials(deepcopy=False)[number]
    for draw in range(MAX_DRAWS):
        sampler = build_sampler(spec, [number, draw])
        point = _draw(study, trial, sampler, spec.space)
        if all(constraint.violation({**fixed, **point}) <= 0 for constraint in constraints):
            return point
    texts = ", ".join(constraint.text for constraint in constraints)
    raise UserError(f"none of {MAX_DRAWS} points satisfies the constraints {texts}; widen the space, or the constraints")


def grid_point(spec: SweepSpec, number: int, constraints: Sequence[Constraint], fixed: Mapping[str, Any]) -> Point:
    """Return a point of the grid by its number, among those that satisfy the constraints."""
    allowed = (
        point
        for point in grid_points(spec.space)
        if all(constraint.violation({**fixed, **point}) <= 0 for constraint in constraints)
    )
    return next(itertools.islice(allowed, number, None))


def build_sampler(spec: SweepSpec, key: Sequence[int]) -> BaseSampler:
    """Build Optuna's sampler, seeded by the sweep's seed and a key."""
    sampler = spec.sampler
    if isinstance(sampler, Grid):
        return RandomSampler()  # The study needs one; points come from grid_point.
    seed = int(np.random.SeedSequence([sampler.seed, *key]).generate_state(1)[0])
    if isinstance(sampler, Random):
        return RandomSampler(seed=seed)
    if isinstance(sampler, GaussianProcess):
        return GPSampler(seed=seed, n_startup_trials=sampler.startup, warn_independent_sampling=False)
    assert isinstance(sampler, Tpe)
    conditional = any(dimension.when for dimension in spec.space.values())
    with warnings.catch_warnings():
        # Groups of keys that are searched together are experimental in Optuna, and the only way to condition TPE on all of them.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=sampler.startup, multivariate=True, group=conditional, constant_liar=True)


def build_pruner(spec: PrunerSpec) -> BasePruner:
    """Build Optuna's pruner, whose steps are epochs."""
    if isinstance(spec, Asha):
        return SuccessiveHalvingPruner(min_resource=spec.min_epochs, reduction_factor=spec.reduction)
    if isinstance(spec, Median):
        return MedianPruner(n_startup_trials=spec.startup, n_warmup_steps=spec.warmup_epochs)
    return NopPruner()


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """Return the values of a key as Optuna's distribution."""
    if dimension.choice is not None:
        return CategoricalDistribution([encode(dimension, value) for value in dimension.choice])
    if dimension.int_ is not None:
        low, high, step = *dimension.int_, int(dimension.step or 1)
        return IntDistribution(low, low + (high - low) // step * step, step=step)
    if dimension.log is not None:
        return FloatDistribution(*dimension.log, log=True)
    low_, high_ = dimension.float_ or (0.0, 0.0)
    return FloatDistribution(low_, high_, step=dimension.step)


def _draw(study: optuna.Study, trial: FrozenTrial, sampler: BaseSampler, space: Space) -> Point:
    """Draw a point as Optuna's own trials do: keys that all trials have together, the others one by one."""
    relative = sampler.infer_relative_search_space(study, trial)
    together = sampler.sample_relative(study, trial, relative)
    point: Point = {}
    for key, dimension in space.items():
        if not is_active(dimension, point):
            continue
        distribution = distribution_of(dimension)
        if distribution.single():
            point[key] = extremes(dimension)[0]
        elif key in together:
            point[key] = decode(dimension, together[key])
        else:
            point[key] = decode(dimension, sampler.sample_independent(study, trial, key, distribution))
    return point
