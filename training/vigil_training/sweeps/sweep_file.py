"""Sweep files: read and checked, so that no point of the space can fail for a mistake in the recipe.

Example:
    >>> plan = read_sweep("recipes/sweeps/comments.yaml")
    >>> plan.recipe_of({"optimizer.lr": 1e-4}).recipe.optimizer.lr
    0.0001
"""

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.yaml_files.read_spec import defaults, merge, validate_tree
from vigil_data.yaml_files.yaml_tree import KeyPath, Origin, nearest, read_file
from vigil_modeling.specs import Contrastive
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.requirements import check_installed, check_sources
from vigil_training.recipe.resolve import ResolvedRecipe, resolve_recipe
from vigil_training.recipe.specs import Ranks, retrieval_metric_names, validation_metric_names
from vigil_training.sweeps.constraints import Constraint, parse_constraint
from vigil_training.sweeps.space import Point, grid_points, grid_size, points_to_check
from vigil_training.sweeps.specs import LATENCY, SweepSpec
from vigil_training.sweeps.wandb_engine.config import engine_problems

MAX_GRID = 100_000
"""Points of a grid; more are a mistake."""
MAX_REPORTED_POINTS = 3
"""Points that are resolved once more from the recipe's files, to report where the mistake is."""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep file and its recipe.

    Attributes:
        path: the file.
        spec: its content.
        recipe: the recipe without a point; ``None`` for a sweep of a function.
        origins: where each value of the file was written.
    """

    path: Path
    spec: SweepSpec
    recipe: Recipe | None
    origins: Mapping[KeyPath, Origin]

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """Dotted key to value of every number in the recipe."""
        return {} if self.recipe is None else dict(_numbers(self.recipe.model_dump(mode="json")))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that a trial reports."""
        if self.recipe is None:
            return tuple(metric.name for metric in self.spec.metric)
        recipe = self.recipe
        pretrains = isinstance(recipe.objective, Contrastive)
        names = retrieval_metric_names(recipe.modalities) if pretrains else validation_metric_names(recipe.taxonomy.labels)
        return (*names, LATENCY)

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints.

        Raises:
            UserError: for the first that is none.
        """
        names = {*self.fixed, *self.spec.space, *self.metrics}
        parsed = []
        for index, text in enumerate(self.spec.constraints):
            try:
                parsed.append(parse_constraint(text, names))
            except ValueError as error:
                raise UserError(f"{self.origin('constraints', index)}: constraints[{index}]: {text!r}: {error}") from None
        return tuple(parsed)

    @property
    def key_constraints(self) -> tuple[Constraint, ...]:
        """Constraints over keys alone, which every point satisfies."""
        return tuple(each for each in self.constraints if not set(each.names) & set(self.metrics))

    @property
    def metric_constraints(self) -> tuple[Constraint, ...]:
        """Constraints that name a metric, which are known when a trial has ended."""
        return tuple(each for each in self.constraints if set(each.names) & set(self.metrics))

    @property
    def needs_latency(self) -> bool:
        """Whether a metric or a constraint asks for the latency."""
        names = {metric.name for metric in self.spec.metric}.union(*(each.names for each in self.constraints))
        return self.recipe is not None and LATENCY in names

    @cached_property
    def trials(self) -> int:
        """Number of trials."""
        if self.spec.sampler.kind != "grid":
            return self.spec.trials or 0
        count = sum(1 for point in grid_points(self.spec.space) if self.allows(point))
        return count if self.spec.trials is None else min(count, self.spec.trials)

    def allows(self, point: Point) -> bool:
        """Return whether a point satisfies the constraints over keys."""
        return all(constraint.violation({**self.fixed, **point}) <= 0 for constraint in self.key_constraints)

    def origin(self, *path: str | int) -> str:
        """Return ``FILE:LINE`` of a value, or of the innermost block around it."""
        known = (self.origins.get(path[:length]) for length in range(len(path), -1, -1))
        return str(next((origin for origin in known if origin is not None), self.path))

    def recipe_of(self, point: Point, number: int | None = None) -> ResolvedRecipe:
        """Return the recipe of a point, as trial ``number``: named after it, and in the sweep's group in W&B.

        Raises:
            UserError: one line for each mistake.
        """
        assert self.recipe is not None
        values: dict[str, Any] = dict(point)
        if number is not None:
            values["name"] = f"{self.spec.name[:58]}-{number:04}"
            if self.recipe.tracking.group is None:
                values.setdefault("tracking.group", self.spec.name)
        return resolve_recipe(self.recipe, overrides_of(values), source=str(self.path))


def read_sweep(path: StrPath, values: Mapping[str, Any] | None = None, *, check_points: bool = True) -> SweepPlan:
    """Read a sweep file and check it: its recipe, its metrics, and points with every extreme value of every key.

    Args:
        path: the file.
        values: values of its keys from the command line; ``None`` is ignored.
        check_points: false for a file that was checked already, such as that of a sweep folder.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake found.
    """
    path = Path(path)
    mistakes: list[str] = []
    tree = read_file(path, mistakes, kind="sweep", example="metric: validation/macro_ap")
    given = {key: value for key, value in (values or {}).items() if value is not None}
    base = defaults(SweepSpec)
    merged = base if tree is None else merge(base, tree)
    spec = validate_tree(SweepSpec, merged, Origin(str(path), 1), tree is not None, mistakes)
    spec = spec.model_copy(update=given)
    origins = {where: node.origin for where, node in merged.walk() if node.origin is not None}
    recipe, file = None, None
    if spec.recipe is not None:
        file = Path(os.path.normpath(path.parent / spec.recipe))
        resolved = resolve_recipe(file)
        if check_points:
            check_installed(resolved)
            check_sources(resolved)
        recipe = resolved.recipe
    plan = SweepPlan(path, spec, recipe, origins)
    mistakes += _mistakes(plan)
    if check_points and not mistakes and file is not None:
        mistakes += _point_mistakes(plan, file)
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))
    return plan


def overrides_of(point: Mapping[str, Any]) -> list[str]:
    """Return a point as ``key.path=value`` with values in YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in point.items()]


def _mistakes(plan: SweepPlan) -> Iterator[str]:
    spec = plan.spec
    for index, metric in enumerate(spec.metric):
        if metric.name not in plan.metrics:
            hint = nearest(metric.name, list(plan.metrics)) or f"; the metrics are {', '.join(plan.metrics)}"
            yield f"{plan.origin('metric', index)}: metric: {metric.name!r} is not a metric of the validation{hint}"
    if spec.sampler.kind == "grid" and (size := grid_size(spec.space)) > MAX_GRID:
        yield f"{plan.origin('space')}: space: the grid has {size:,} points; take fewer values, or sampler tpe"
        return
    if plan.recipe is not None and isinstance(plan.recipe.strategy, Ranks) and plan.recipe.strategy.nodes > 1:
        yield f"{plan.origin('recipe')}: recipe: strategy.nodes is {plan.recipe.strategy.nodes}, but a trial runs on one machine"
    if spec.recipe is not None:
        for key in spec.space:
            if key.split(".")[0] in ("name", "tracking", "taxonomy", "extends"):
                yield f"{plan.origin('space', key)}: space.{key}: is the same in all trials; leave this out"
    if spec.engine == "wandb":
        yield from engine_problems(plan)
    if plan.constraints and spec.sampler.kind == "grid" and plan.trials == 0:
        yield f"{plan.origin('constraints')}: constraints: no point of the grid satisfies them"


def _point_mistakes(plan: SweepPlan, file: Path) -> Iterator[str]:
    """Yield the mistakes of points of the space: the first of each key, and the first that lie in values of the recipe."""
    reported: set[str] = set()
    elsewhere = 0
    for point in points_to_check(plan.spec.space):
        if not plan.allows(point):
            continue
        try:
            check_installed(plan.recipe_of(point))
        except UserError as error:
            rests = [line.removeprefix(f"{plan.path}: ") for line in error.lines]
            keys = [_key_of(point, rest) for rest in rests]
            for key, rest in zip(keys, rests, strict=True):
                if key is not None and key not in reported:
                    reported.add(key)
                    yield f"{plan.origin('space', key)}: space.{rest}"
            if None in keys and elsewhere < MAX_REPORTED_POINTS:
                elsewhere += 1
                yield from _located(plan, point, file)


def _key_of(point: Point, message: str) -> str | None:
    """Return the key of the space with which a message begins."""
    return next((key for key in point if re.match(rf"{re.escape(key)}(?![\w.]*\w)", message)), None)


def _located(plan: SweepPlan, point: Point, file: Path) -> Iterator[str]:
    """Yield the mistakes that a point makes in values of the recipe, with their place in its files."""
    try:
        check_installed(resolve_recipe(file, overrides_of(point), source=str(plan.path)))
    except UserError as error:
        shown = ", ".join(itertools.islice(overrides_of(point), 8))
        for line in error.lines:
            if _key_of(point, rest := line.removeprefix(f"{plan.path}: ")) is None:
                yield f"{rest} (with {shown} of {plan.origin('space')})"


def _numbers(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{key}", value
