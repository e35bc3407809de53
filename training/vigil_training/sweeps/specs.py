"""Spec of a sweep: a recipe, a search space, and how it is searched."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from vigil_data.source_specs import Spec
from vigil_data.yaml_files.yaml_tree import nearest
from vigil_training.recipe.recipe import RunName

Direction = Literal["maximize", "minimize"]
Scalar = str | int | float | bool | None

LATENCY = "latency_ms"
"""Metric: median milliseconds of a forward pass of one item, with the best checkpoint."""


class MetricSpec(Spec):
    """A metric that the sweep optimizes."""

    name: str = Field(description="validation metric, such as validation/macro_ap, or latency_ms: milliseconds of one item")
    direction: Direction | None = Field(None, description="default: minimize for losses and latency_ms, otherwise maximize")

    @property
    def sense(self) -> Direction:
        """The direction, with its default."""
        return self.direction or ("minimize" if self.name == LATENCY or self.name.endswith("loss") else "maximize")


def _to_metrics(value: object) -> object:
    """Read one metric, or a name, as a list of metrics; pydantic takes what this returns as Python, where a list is no tuple."""
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple({"name": entry} if isinstance(entry, str) else entry for entry in entries)


Metrics = Annotated[
    tuple[MetricSpec, ...],
    Field(min_length=1),
    BeforeValidator(_to_metrics, json_schema_input_type=str | MetricSpec | list[str | MetricSpec]),
]


class Dimension(Spec):
    """Values of one key: one of ``choice``, ``int``, ``float`` and ``log``."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="values to choose from")
    int_: tuple[int, int] | None = Field(None, alias="int", description="lowest and highest whole number")
    float_: tuple[float, float] | None = Field(None, alias="float", description="lowest and highest number")
    log: tuple[float, float] | None = Field(None, description="lowest and highest number, searched by its logarithm")
    step: float | None = Field(None, gt=0, description="distance of two values of int or float (default: 1 for int)")
    points: int | None = Field(None, ge=2, description="evenly spaced values of float or log that sampler grid takes")
    when: Mapping[str, Any] = Field(
        default_factory=dict,
        description="keys of the space above this one, and the value or list of values of each with which this key is searched",
    )

    @model_validator(mode="after")
    def _one_range(self) -> "Dimension":
        given = [name for name, value in self._ranges().items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of choice, int, float and log, not {' and '.join(given) or 'none of them'}")
        [name] = given
        bounds = self._ranges()[name]
        if name != "choice" and not bounds[0] < bounds[1]:
            raise ValueError(f"{name}: the lowest value must be below the highest, not {bounds[0]:.12g} and {bounds[1]:.12g}")
        if name == "log" and bounds[0] <= 0:
            raise ValueError(f"log: the lowest value must be above 0, not {bounds[0]:.12g}")
        if self.step is not None and name in ("choice", "log"):
            raise ValueError(f"step: {name} has none; leave it out")
        if name == "int" and self.step is not None and self.step != int(self.step):
            raise ValueError("step: must be a whole number for int")
        if self.points is not None and name in ("choice", "int"):
            raise ValueError(f"points: {name} has its own values; leave this out")
        for left, right in combinations(self.choice or (), 2):
            if left == right:
                raise ValueError(f"choice: {json.dumps(left)} and {json.dumps(right)} are equal")
        return self

    def _ranges(self) -> dict[str, Any]:
        return {"choice": self.choice, "int": self.int_, "float": self.float_, "log": self.log}


class Tpe(Spec):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate (Falkner et al. 2018)."""

    kind: Literal["tpe"] = "tpe"
    seed: int = Field(0, ge=0, lt=2**32, description="of the points")
    startup: int = Field(10, ge=1, description="ended trials before which points are random")


class GaussianProcess(Spec):
    """Gaussian process with log expected improvement; best for few, costly trials without conditional keys."""

    kind: Literal["gp"] = "gp"
    seed: int = Field(0, ge=0, lt=2**32, description="of the points")
    startup: int = Field(10, ge=1, description="ended trials before which points are random")


class Random(Spec):
    """Independent random points: trial n has the same point with any number of workers."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**32, description="of the points")


class Grid(Spec):
    """Every combination of values once, in order: trial n is the n-th."""

    kind: Literal["grid"] = "grid"


class Asha(Spec):
    """Asynchronous successive halving (Li et al. 2020): of the trials that reach a rung, the best share continues."""

    kind: Literal["asha"] = "asha"
    min_epochs: int = Field(1, ge=1, description="epochs before the first decision; the next is after reduction times as many")
    reduction: int = Field(3, ge=2, description="one of so many trials continues at each rung")


class Median(Spec):
    """A trial ends whose best value so far is worse than the median of the others at the same epoch."""

    kind: Literal["median"] = "median"
    startup: int = Field(5, ge=0, description="ended trials before the first decision")
    warmup_epochs: int = Field(0, ge=0, description="epochs of a trial without a decision")


class NoPruner(Spec):
    """Every trial is trained to its end."""

    kind: Literal["none"] = "none"


SamplerSpec = Annotated[Tpe | GaussianProcess | Random | Grid, Field(discriminator="kind")]
PrunerSpec = Annotated[Asha | Median | NoPruner, Field(discriminator="kind")]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class SweepSpec(Spec):
    """A recipe and a search space; ``sweep.yaml`` in the sweep folder is one, with every default written out."""

    name: RunName = Field(description="names the sweep folder, and the group of its runs in W&B")
    recipe: str | None = Field(None, description="recipe file, relative to this one")
    function: FunctionName | None = Field(
        None, description="module:name of a Python function that is optimized in place of training; its keys are free"
    )
    metric: Metrics = Field(description="metric, or list of metrics for a Pareto front, each with its direction")
    trials: int | None = Field(None, ge=1, description="number of trials (default with sampler grid: all of its points)")
    sampler: SamplerSpec = Tpe()
    pruner: PrunerSpec = NoPruner()
    space: Mapping[str, Dimension] = Field(min_length=1, description="key of the recipe to its values")
    constraints: tuple[str, ...] = Field(
        (),
        description="comparisons of arithmetic over keys, which every point satisfies, or over metrics, which the best satisfies",
    )
    retries: int = Field(1, ge=0, description="how often a trial is resumed whose worker was lost; then it has failed")
    stale_after: float = Field(120.0, ge=1, description="seconds without a heartbeat after which a worker counts as lost")
    engine: Literal["vigil", "wandb"] = Field("vigil", description="wandb: W&B's agent chooses the points, and needs a login")

    @model_validator(mode="after")
    def _blocks_agree(self) -> "SweepSpec":
        problems = [*self._kind_problems(), *self._condition_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _kind_problems(self) -> Sequence[str]:
        found = []
        if (self.recipe is None) == (self.function is None):
            found.append("recipe: give a recipe to train or a function, one of them")
        if self.pruner.kind != "none" and len(self.metric) > 1:
            found.append("pruner.kind: several metrics have no order in which trials could be pruned; take none")
        if self.pruner.kind != "none" and self.metric[0].name == LATENCY:
            found.append(f"pruner.kind: {LATENCY} is measured at the end of a trial; take none")
        if len({metric.name for metric in self.metric}) < len(self.metric):
            found.append("metric: names a metric twice")
        if self.sampler.kind != "grid" and self.trials is None:
            found.append("trials is missing (number of trials; only sampler grid has an end of its own)")
        if self.sampler.kind == "grid":
            found += [
                f"space.{key}: sampler grid needs points, or a step"
                for key, dimension in self.space.items()
                if dimension.points is None
                and (dimension.log is not None or (dimension.float_ is not None and dimension.step is None))
            ]
        return found

    def _condition_problems(self) -> Sequence[str]:
        found, above = [], dict[str, Dimension]()
        for key, dimension in self.space.items():
            for other, wanted in dimension.when.items():
                if other not in above:
                    hint = nearest(other, list(above)) or "; a condition names a key above it"
                    found.append(f"space.{key}.when.{other}: is not a key of the space above this one{hint}")
                    continue
                choices = above[other].choice
                found += [
                    f"space.{key}.when.{other}: is never {json.dumps(value)}"
                    for value in (wanted if isinstance(wanted, list) else [wanted])
                    if choices is not None and json.dumps(value) not in map(json.dumps, choices)
                ]
            above[key] = dimension
        return found
