"""Designs of review samples: a YAML file that states what a sample is for, and how its budget is shared.

Example:
    >>> design = read_design(Path("design.yaml"))
    >>> design.purposes[0].kind
    'prevalence'
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vigil_data.specs import Spec
from vigil_data.yaml_files.read_spec import read_spec

Weight = Literal["items", "exposure"]
WEIGHTS: tuple[Weight, ...] = ("items", "exposure")

Strategy = Literal["expected_change", "uncertainty", "relevance", "disagreement", "known_errors", "new_clusters", "typical"]

LEAST_AUDIT = 0.01
"""Smallest share of the budget that is drawn with equal probabilities, so that no decision of the population is out of reach."""


class _Purpose(Spec):
    """What part of the budget is for."""

    share: float | None = Field(
        None, gt=0, le=1, description="share of the budget after audit (default: an equal part of what other purposes leave)"
    )
    weights: tuple[Weight, ...] | None = Field(
        None,
        min_length=1,
        description="what estimates count: items (each decision once), exposure (its views), or both "
        "(default: items, and exposure where the traffic has it)",
    )


class Prevalence(_Purpose):
    """Share of violating content in all traffic: decisions are drawn by the uncertainty √(p(1-p)) of each label."""

    kind: Literal["prevalence"] = "prevalence"


class ActionPrecision(_Purpose):
    """Precision of actions: decisions with an action are drawn by the uncertainty of their highest probability."""

    kind: Literal["action_precision"] = "action_precision"
    actions: tuple[str, ...] | None = Field(
        None, min_length=1, description="the actions, each with an equal part (default: all of the traffic but allow)"
    )


class Recall(_Purpose):
    """Violations that no action was taken on: decisions without action are drawn by the uncertainty of each label."""

    kind: Literal["recall"] = "recall"
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="for traffic without actions: a decision is acted on if any probability reaches it (default: by action)",
    )


class AbPair(_Purpose):
    """Difference of two models on the same ids: those that they decide differently, and a random control of the others."""

    kind: Literal["ab_pair"] = "ab_pair"
    control: float = Field(0.2, gt=0, lt=1, description="part that is drawn from the ids that both decide in the same way")


class Mined(Spec):
    """What teaches a model most: decisions are drawn by the score of a strategy, for `vigil monitor mine`."""

    kind: Literal["mined"] = "mined"
    strategy: Strategy = Field(description="what makes a decision worth a label; docs/monitor-mining.md describes each")
    share: float | None = Field(
        None, gt=0, le=1, description="share of the budget after audit (default: an equal part of what other purposes leave)"
    )
    sharpness: float = Field(1.0, gt=0, le=8, description="power of the score: the higher, the more the highest scores are drawn")


Purpose = Annotated[Prevalence | ActionPrecision | Recall | AbPair | Mined, Field(discriminator="kind")]


class Strata(Spec):
    """Strata of the population; each has a fixed sample size."""

    bands: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.01, 0.1, 0.5),
        description="cuts of the highest probability into bands; a stratum is a band of the label that has the highest one, and "
        "the lowest band is one stratum for all labels",
    )
    columns: tuple[str, ...] = Field((), description="further columns whose values make strata, such as language")
    action: bool = Field(False, description="whether each action is a stratum of its own")
    least: int = Field(
        0, ge=0, description="fewest decisions drawn from each stratum (default: 0; strata that are due under 2 are pooled)"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Strata":
        if list(self.bands) != sorted(set(self.bands)):
            raise ValueError("bands must rise, such as [0.01, 0.1, 0.5]")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names a column twice")
        if self.least == 1:
            raise ValueError("least must be 0 or at least 2: one decision of a stratum has no variance")
        return self


class Design(Spec):
    """Design of a review sample: one sample with known inclusion probabilities serves all its purposes."""

    description: str = Field("", description="what the sample is for")
    labels: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="labels that reviewers answer for every decision drawn (default: all)",
    )
    purposes: tuple[Purpose, ...] = Field(min_length=1, description="what the sample is for, each with its share of the budget")
    audit: float = Field(
        0.1,
        ge=LEAST_AUDIT,
        le=1,
        description="share of the budget that is drawn with equal probabilities from all decisions",
    )
    floor: float = Field(
        0.1,
        ge=0,
        le=1,
        description="part of each purpose's share that ignores probabilities and counts only items or exposure; set it higher "
        "for scores that are not calibrated",
    )
    strata: Strata = Field(Strata(), description="strata of the population")
    cluster: str | None = Field(
        None,
        description="column of decisions that belong together, such as author; the sample is spread over as many as possible",
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> "Design":
        given = [purpose.share for purpose in self.purposes if purpose.share is not None]
        rest = 1 - sum(given)
        if len(given) == len(self.purposes) and abs(rest) > 1e-9:
            raise ValueError(f"purposes have shares that add up to {sum(given):.12g}, not 1; leave one out to give it the rest")
        if len(given) < len(self.purposes) and rest <= 1e-9:
            raise ValueError("purposes have shares that add up to 1 or more, so that nothing is left for the one without a share")
        if [purpose.kind for purpose in self.purposes].count("ab_pair") > 1:
            raise ValueError("purposes has ab_pair twice")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each purpose in the complete budget; with audit they add up to 1."""
        given = [purpose.share for purpose in self.purposes]
        rest = 1 - sum(share for share in given if share is not None)
        each = rest / max(given.count(None), 1)
        return tuple((1 - self.audit) * (each if share is None else share) for share in given)

    @property
    def mined(self) -> tuple[Mined, ...]:
        """Purposes that need the scores of strategies."""
        return tuple(purpose for purpose in self.purposes if isinstance(purpose, Mined))

    @property
    def compares(self) -> bool:
        """Whether a challenger's decisions are needed."""
        return any(purpose.kind == "ab_pair" for purpose in self.purposes)


def read_design(path: Path) -> Design:
    """Read a design.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake.
    """
    return read_spec(Design, path, "design", "audit: 0.1")
