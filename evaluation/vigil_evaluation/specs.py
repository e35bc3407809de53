"""The `evaluation` block of a recipe."""

from typing import Literal

from pydantic import ConfigDict, Field

from vigil_data.specs import Spec

Method = Literal["none", "temperature", "platt", "beta", "isotonic"]
"""Calibration method; ``none`` leaves probabilities unchanged."""


SUITE_COLUMNS = ("identity", "target_identity", "pair", "pair_gold", "perturbation", "template")
"""Columns of a functional test suite in addition to the functionality (docs/suites.md)."""


class CalibrationSpec(Spec):
    """Calibration of raw probabilities; each label gets the simplest method that is not clearly worse than the best.

    The method is selected by cross-validated log loss: the simplest one within one standard error of the lowest.
    """

    model_config = ConfigDict(title="Calibration block")  # the name in messages

    methods: tuple[Method, ...] = Field(
        ("temperature", "platt", "beta", "isotonic"), description="candidate methods in addition to none"
    )
    by: str | None = Field(
        None, description="a column, or presence; each value with enough known targets gets its own calibrator"
    )
    folds: int = Field(5, ge=2, description="folds of the cross-validation that chooses the method")


class ConformalSpec(Spec):
    """When to abstain and send an item to review."""

    miss_rate: float = Field(
        0.1, gt=0, lt=1, description="largest expected share of a label's positives that are neither flagged nor reviewed"
    )
    error_rate: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="largest expected share of each class of a label whose prediction set excludes the true class",
    )


class EvaluationSpec(Spec):
    """Metrics, intervals, slices and calibration of an evaluation."""

    model_config = ConfigDict(title="Evaluation block")  # the name in messages

    false_positive_rate: float = Field(
        0.01, gt=0, lt=1, description="rate at which recall is reported, and upper limit of the partial AUROC"
    )
    precision: float = Field(0.9, gt=0, lt=1, description="precision at which recall is reported")
    slices: tuple[str, ...] = Field((), description="columns of the dataset to slice by, in addition to presence")
    crosses: tuple[tuple[str, str], ...] = Field((), description="pairs of columns (or presence) to slice by jointly")
    identities: tuple[str, ...] = Field(
        (), description="columns that name the group of people an item is about; each group is compared with all other items"
    )
    functionality: str | None = Field(
        "functionality", description="column that names the functional test of an item, if the dataset has it"
    )
    cluster: str | None = Field(
        None, description="column of the units that are resampled together, such as author (default: each item is its own unit)"
    )
    enough: int = Field(
        5, ge=1, description="fewest known positives (negatives) for a metric that needs them; the metric is null below"
    )
    replicates: int = Field(1000, ge=0, description="bootstrap replicates behind each interval; 0 for no intervals")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence of each interval")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the bootstrap and the folds")
    calibration: CalibrationSpec = CalibrationSpec()
    conformal: ConformalSpec = ConformalSpec()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a dataset that an evaluation reads, if present."""
        crossed = [name for pair in self.crosses for name in pair]
        others = [name for name in (self.functionality, self.cluster, self.calibration.by) if name is not None]
        of_suites = SUITE_COLUMNS if self.functionality is not None else ()
        named = dict.fromkeys([*self.slices, *crossed, *self.identities, *others, *of_suites])
        return tuple(name for name in named if name != "presence")
