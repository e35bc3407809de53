"""Points and pruning by Optuna's samplers and pruners.

A point is drawn when its trial has its number, by a sampler seeded with the sweep's seed and that number: with sampler random, or
grid, trial n has the same point with any number of workers.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from vigil_data.errors import UserError
from vigil_training.sweeps.constraints import Constraint
from vigil_training.sweeps.space import (
    Point,
    Space,
    all_values,
    decode,
    encode,
    extremes,
    grid_points,
    is_active,
    with_conditions,
)
from vigil_training.sweeps.specs import Asha, Dimension, GaussianProcess, Grid, Median, PrunerSpec, Random, SweepSpec, Tpe

MAX_HALVINGS = 12
"""Steps towards the edge of what the constraints allow."""

MAX_DRAWS = 1000
"""Random points that are drawn until one satisfies the constraints."""


def draw_point(
    study: optuna.Study, number: int, spec: SweepSpec, constraints: Sequence[Constraint], fixed: Mapping[str, Any]
) -> Point:
    """Draw the point of a trial.

    A point of tpe or gp that violates a constraint is moved: both have seen no trial that does, so that they may draw such points
    again and again.

    Args:
        study: the study, with the trial, which has no parameters yet.
        number: number of the trial.
        spec: space, sampler and seed.
        constraints: those over keys alone.
        fixed: values of other keys in the constraints.

    Raises:
        UserError: if no point that satisfies the constraints is found.
    """

    def allows(point: Point) -> bool:
        return all(constraint.violation({**fixed, **point}) <= 0 for constraint in constraints)

    if isinstance(spec.sampler, Grid):
        return next(itertools.islice(filter(allows, grid_points(spec.space)), number, None))
    random = np.random.default_rng([spec.sampler.seed, number])
    drawn = (all_values(spec.space, random) for _ in range(MAX_DRAWS))
    start = next((values for values in drawn if allows(with_conditions(spec.space, values))), None)
    if start is None:
        texts = ", ".join(constraint.text for constraint in constraints)
        raise UserError(f"none of {MAX_DRAWS} points satisfies the constraints {texts}; widen the space, or the constraints")
    if isinstance(spec.sampler, Random):
        return with_conditions(spec.space, start)
    trial = study.get_trials(deepcopy=False)[number]
    point = _draw(study, trial, build_sampler(spec, number), spec.space)
    return point if allows(point) else move_point(spec.space, point, start, allows)


def move_point(space: Space, point: Point, start: Point, allows: Callable[[Point], bool]) -> Point:
    """Return a point that is allowed: key by key, as near to ``point`` as it can be from one that is.

    Args:
        space: the space.
        point: the point that is not allowed.
        start: a value of every key, which are allowed.
        allows: whether a point is allowed.
    """
    values = dict(start)
    for key, wanted in point.items():
        dimension, low, high = space[key], 0.0, 1.0
        if allows(with_conditions(space, {**values, key: wanted})):
            values[key] = wanted
        elif dimension.log is not None or (dimension.float_ is not None and dimension.step is None):
            first = values[key]
            for _ in range(MAX_HALVINGS):
                middle = (low + high) / 2
                between = first + middle * (wanted - first)
                if allows(with_conditions(space, {**values, key: between})):
                    low, values[key] = middle, between
                else:
                    high = middle
    return with_conditions(space, values)


def build_sampler(spec: SweepSpec, number: int) -> BaseSampler:
    """Build Optuna's sampler, seeded by the sweep's seed and a trial's number."""
    sampler = spec.sampler
    if isinstance(sampler, Grid | Random):
        return RandomSampler()  # A study needs one; these points need no study.
    seed = int(np.random.SeedSequence([sampler.seed, number]).generate_state(1)[0])
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
