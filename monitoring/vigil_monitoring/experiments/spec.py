"""`experiment.yaml`: arms, metrics with margins, guardrails and the horizon of an experiment.

Example:
    >>> spec = read_experiment(Path("experiment.yaml"))
    >>> spec.metrics[0].threshold
    -0.01
"""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, Tag, model_validator

from vigil_data.source_specs import Spec, default_kind
from vigil_data.yaml_files.read_spec import read_spec

Metric = Literal["precision", "recall", "false_positive_rate", "violations_left_up", "review_load", "action_rate"]
TRAFFIC_METRICS = ("review_load", "action_rate")
"""Metrics of all decisions, which need no reviews."""

LOWER_IS_BETTER = ("false_positive_rate", "violations_left_up", "review_load")

Share = Annotated[float, Field(gt=0, lt=1)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]
Day = Annotated[date, BeforeValidator(lambda value: date.fromisoformat(value) if isinstance(value, str) else value)]


class Shadow(Spec):
    """The challenger decides the same items as a shadow: `vigil serve --shadow BUNDLE --log DIR`."""

    kind: Literal["shadow"] = "shadow"


class HashSplit(Spec):
    """Each unit has one of the models, by a hash that the router and the analysis both compute."""

    kind: Literal["hash"] = "hash"
    salt: str = Field(min_length=1, description="text that makes this split independent of others")
    unit: str = Field("author", description="column of the unit that is assigned: author, thread, id or a further column")
    share: Share = Field(0.5, description="share of the units that the challenger decides")


class ColumnSplit(Spec):
    """The log has a column that names the arm."""

    kind: Literal["column"] = "column"
    column: str = Field(description="column of the log")
    champion: str = Field(description="its value for the champion")
    challenger: str = Field(description="its value for the challenger")
    unit: str = Field("author", description="column of the unit that was assigned")
    share: Share = Field(0.5, description="share of the units that were to have the challenger")

    @model_validator(mode="after")
    def _two_arms(self) -> "ColumnSplit":
        if self.champion == self.challenger:
            raise ValueError("challenger: must differ from the champion's value")
        return self


class Switchback(Spec):
    """The arms alternate by blocks of time: of each two blocks one has the challenger, in random order."""

    kind: Literal["switchback"] = "switchback"
    salt: str = Field(min_length=1, description="text that fixes the random order")
    block_minutes: int = Field(60, ge=1, le=1440, description="length of a block; 1440 is divisible by twice this length")
    washout_minutes: int = Field(0, ge=0, description="minutes at the start of a block that are left out, for carry-over")

    @model_validator(mode="after")
    def _whole_pairs(self) -> "Switchback":
        if 1440 % (2 * self.block_minutes):
            raise ValueError(
                f"block_minutes: a day must hold whole pairs of blocks, so 720 must be divisible by it, not {self.block_minutes}"
            )
        if self.washout_minutes >= self.block_minutes:
            raise ValueError("washout_minutes: must be less than block_minutes")
        return self


Split = Annotated[
    Annotated[Shadow, Tag("shadow")]
    | Annotated[HashSplit, Tag("hash")]
    | Annotated[ColumnSplit, Tag("column")]
    | Annotated[Switchback, Tag("switchback")],
    default_kind("shadow"),
]


class MetricSpec(Spec):
    """A difference, challenger minus champion, and the margin that it must keep."""

    metric: Metric = Field(description="precision, recall, false_positive_rate, violations_left_up, review_load or action_rate")
    label: str | None = Field(None, description="decisions on this label only (default: all labels of the experiment)")
    action: str | None = Field(None, description="this action only (default: every action but allow and review)")
    weight: Literal["items", "exposure"] = Field("items", description="what counts: each decision, or its exposure")
    better: Literal["higher", "lower"] | None = Field(
        None, description="direction (default: the metric's; needed for action_rate)"
    )

    @model_validator(mode="after")
    def _has_direction(self) -> "MetricSpec":
        if self.metric == "action_rate" and self.better is None:
            raise ValueError("better: is missing: an action_rate may be meant to rise (higher) or to fall (lower)")
        if self.metric == "review_load" and (self.label is not None or self.action is not None):
            raise ValueError("metric: review_load counts all decisions that go to review; leave label and action out")
        return self

    @property
    def lower(self) -> bool:
        """Whether lower values are better."""
        return self.better == "lower" if self.better is not None else self.metric in LOWER_IS_BETTER

    @property
    def name(self) -> str:
        """The metric, for reports."""
        of = " of ".join(part for part in (self.metric.replace("_", " "), self.action, self.label) if part is not None)
        return of + (" by exposure" if self.weight == "exposure" else "")


class DecisiveMetric(MetricSpec):
    """A metric on which the verdict rests."""

    goal: Literal["superior", "not_inferior"] = Field(
        "not_inferior", description="superior: better by more than the margin; not_inferior: not worse by more than the margin"
    )
    margin: float = Field(ge=0, lt=1, description="in the metric's unit, such as 0.01 for a percentage point")

    @model_validator(mode="after")
    def _can_be_shown(self) -> "DecisiveMetric":
        if self.goal == "not_inferior" and self.margin == 0:
            raise ValueError(
                "margin: must be greater than 0: that nothing is lost cannot be shown on a sample; or goal: superior"
            )
        return self

    @property
    def threshold(self) -> float:
        """The gain (in the better direction) that must be exceeded."""
        return self.margin if self.goal == "superior" else -self.margin


class Guardrail(MetricSpec):
    """A metric that must not get worse by more than a margin, in any slice."""

    margin: float = Field(gt=0, lt=1, description="largest accepted loss, in the metric's unit")
    by: str | None = Field(None, description="column whose values are checked each, such as language (default: all decisions)")

    @property
    def threshold(self) -> float:
        """The gain (in the better direction) below which a slice fails."""
        return -self.margin


class Experiment(Spec):
    """An experiment."""

    name: str = Field(min_length=1, max_length=100, description="name, for reports")
    champion: Hash | None = Field(
        None, description="hash of the champion's bundle, or its beginning (default: the arm's only one)"
    )
    challenger: Hash | None = Field(None, description="hash of the challenger's bundle, or its beginning")
    split: Split = Shadow()
    start: Day | None = Field(None, description="first day (default: of the traffic)")
    end: Day | None = Field(None, description="last day, included (default: of the traffic)")
    horizon_days: int = Field(30, ge=2, description="days after which the intervals are tightest; they hold at all others too")
    labels: tuple[str, ...] = Field((), description="labels that make an item a violation (default: all of the traffic)")
    takes_down: tuple[str, ...] = Field(("remove",), description="actions after which an item is no longer up")
    metrics: tuple[DecisiveMetric, ...] = Field(min_length=1, description="each must meet its goal for promote")
    guardrails: tuple[Guardrail, ...] = Field((), description="none may be shown to fail")
    alpha: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.05, description="probability of a wrong verdict at any look: half for promote, half for reject"
    )
    enough: int = Field(20, ge=2, description="fewest rows of each arm behind a metric at a look")
    max_slices: int = Field(20, ge=1, description="values of a guardrail's column that are checked, the most frequent first")

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ValueError(f"end: {self.end} is before start {self.start}")
        if self.champion is not None and self.champion == self.challenger:
            raise ValueError("challenger: is the champion's bundle")
        return self

    @property
    def needs_reviews(self) -> bool:
        """Whether any metric needs reviewers' answers."""
        return any(of.metric not in TRAFFIC_METRICS for of in (*self.metrics, *self.guardrails))


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's file.

    Raises:
        UserError: one line ``FILE:LINE: key: what`` for each mistake.
    """
    return read_spec(Experiment, path, "experiment", "name: my-experiment")
