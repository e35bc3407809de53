"""What a recipe can say about evaluation."""

from typing import Literal

from pydantic import Field

from vigil_data.specs import Spec

Method = Literal["none", "temperature", "platt", "beta", "isotonic"]
"""How a probability is calibrated; ``none`` leaves it as it is."""


SUITE_COLUMNS = ("identity", "target_identity", "pair", "pair_gold", "perturbation", "template")
"""Columns that a suite has beside the functionality, under their usual names; docs/suites.md explains them."""


class CalibrationSpec(Spec):
    """How raw probabilities become frequencies: per label, the method with the best cross-validated log loss."""

    methods: tuple[Method, ...] = Field(
        ("temperature", "platt", "beta", "isotonic"), description="candidates beside none, which always is one"
    )
    by: str | None = Field(
        None, description="a column, or presence, whose values get calibrators of their own where they have enough known targets"
    )
    folds: int = Field(5, ge=2, description="of the cross-validation that chooses the method")


class ConformalSpec(Spec):
    """When to abstain and send an item to review."""

    miss_rate: float = Field(
        0.1, gt=0, lt=1, description="largest expected share of a label's positives that neither a flag nor a review catches"
    )
    error_rate: float = Field(
        0.1, gt=0, lt=1, description="largest expected share, within each class of a label, whose prediction set leaves it out"
    )


class EvaluationSpec(Spec):
    """How probabilities are calibrated, what is measured, with which intervals, and by what it is broken down."""

    false_positive_rate: float = Field(
        0.01, gt=0, lt=1, description="the rate at which recall is reported, and up to which the partial AUROC reaches"
    )
    precision: float = Field(0.9, gt=0, lt=1, description="the precision at which recall is reported")
    slices: tuple[str, ...] = Field(
        (), description="columns of the dataset by which the report breaks its numbers down, beside the modalities present"
    )
    crosses: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of columns (or presence) by whose joint values the numbers are broken down"
    )
    identities: tuple[str, ...] = Field(
        (), description="columns that name the group an item speaks of; compared with all other items for fairness"
    )
    functionality: str | None = Field(
        "functionality", description="the column that names the functional test an item belongs to, where the dataset has it"
    )
    cluster: str | None = Field(
        None, description="column of the units that are resampled together, such as author; each item on its own if not given"
    )
    enough: int = Field(
        5, ge=1, description="fewest known positives, and fewest known negatives, for a number that needs them; null below"
    )
    replicates: int = Field(1000, ge=0, description="bootstrap replicates behind each interval; 0 for no intervals")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of each interval")
    seed: int = Field(0, ge=0, lt=2**32, description="of the bootstrap and the folds")
    calibration: CalibrationSpec = CalibrationSpec()
    conformal: ConformalSpec = ConformalSpec()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a dataset that an evaluation reads; some may be absent from it."""
        crossed = [name for pair in self.crosses for name in pair]
        others = [name for name in (self.functionality, self.cluster, self.calibration.by) if name is not None]
        of_suites = SUITE_COLUMNS if self.functionality is not None else ()
        named = dict.fromkeys([*self.slices, *crossed, *self.identities, *others, *of_suites])
        return tuple(name for name in named if name != "presence")
