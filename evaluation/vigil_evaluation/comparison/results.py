"""Is one model as good as another, in every metric, label and slice? What is asked of it, and what is found.

A regression is a cell (a metric of a label over a slice) that is worse by more than the tolerance, beyond what the worst of so
many comparisons shows by chance. :mod:`vigil_evaluation.comparison.compare` makes the comparison.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Literal

from vigil_data.errors import UserError
from vigil_evaluation.comparison.alignment import AlignmentSummary
from vigil_evaluation.comparison.paired_differences import LOWER_IS_BETTER
from vigil_evaluation.comparison.prediction_flips import PredictionFlips
from vigil_evaluation.stats.bootstrap import METRICS
from vigil_evaluation.stats.intervals import Interval

SCHEMA_VERSION = 1
"""Of comparison.json, docs/compare.md; raised when a field changes its meaning or goes."""

GATED_METRICS = ("average_precision", "recall", "false_positive_rate", "brier")
"""The metrics that are compared unless others are asked for: ranking, decisions both ways, and probabilities."""

Require = Literal["no-regression", "non-inferiority"]
CellVerdict = Literal["regression", "not shown", "improvement", "no evidence", "the same", "not comparable"]


@dataclass(frozen=True, slots=True)
class ReleaseGate:
    """What must hold for the challenger to pass.

    Attributes:
        metrics: that are compared.
        tolerance: the loss that is accepted, in the unit of the metric.
        tolerances: metric to another tolerance.
        alpha: largest chance that a challenger that is nowhere worse than the tolerance fails.
        require: ``no-regression``: nothing is shown to be worse than the tolerance; ``non-inferiority``: everything is shown not
            to be.
        slices: further columns to compare by, which must be there.
    """

    metrics: tuple[str, ...] = GATED_METRICS
    tolerance: float = 0.01
    tolerances: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 0.05
    require: Require = "no-regression"
    slices: tuple[str, ...] = ()

    def tolerance_of(self, metric: str) -> float:
        """The loss of a metric that is accepted."""
        return self.tolerances.get(metric, self.tolerance)

    def check(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a line for each.
        """
        problems = [_unknown(name) for name in dict.fromkeys([*self.metrics, *self.tolerances]) if name not in METRICS]
        if not self.metrics:
            problems.append("no metric to compare; name one of " + ", ".join(METRICS))
        given = {"": self.tolerance, **self.tolerances}
        problems += [
            f"tolerance {f'of {name} ' if name else ''}{value}: must be a number from 0 on"
            for name, value in given.items()
            if not 0 <= value < float("inf")
        ]
        if not 0 < self.alpha < 1:
            problems.append(f"alpha {self.alpha}: must lie between 0 and 1")
        if problems:
            raise UserError(*problems)


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One of the two models.

    Attributes:
        name: the path that was named.
        kind: ``table``, ``run`` or ``bundle``.
        thresholds: label to the lowest probability that is flagged.
        policy: name and version of its compiled policy, if it carries one.
        facts: what its predictions are of.
    """

    name: str
    kind: str
    thresholds: dict[str, float]
    policy: str | None
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class ComparisonCell:
    """One comparison: a metric of a label over a group of items.

    Attributes:
        metric: its name.
        label: ``None`` for the mean over the labels that can be compared.
        column: by which the items are grouped; ``None`` for all items.
        value: what the items of the group share; ``None`` where the column is null.
        known: known targets.
        positive: positive ones.
        champion: its number; ``None`` if not defined.
        challenger: its number.
        delta: challenger less champion.
        interval: of the delta, for this cell alone.
        p_worse: that the challenger is no worse than the tolerance, corrected for the number of comparisons.
        p_better: that it is no better at all, likewise.
        verdict: ``regression``, ``not shown`` (non-inferiority was required and is not shown), ``improvement``, ``no evidence``,
            ``the same`` (the models differ in nothing that the metric sees) or ``not comparable``.
        why: why it is not comparable.
    """

    metric: str
    label: str | None
    column: str | None
    value: str | None
    known: int
    positive: int
    champion: float | None
    challenger: float | None
    delta: float | None
    interval: Interval | None
    p_worse: float | None
    p_better: float | None
    verdict: CellVerdict
    why: str | None = None

    @property
    def gain(self) -> float:
        """The delta, turned so that more is better; 0 where there is none."""
        return (self.delta or 0.0) * (-1 if self.metric in LOWER_IS_BETTER else 1)

    @property
    def where(self) -> str:
        """The items, in words."""
        if self.column is None:
            return "all items"
        return f"{self.column} = {'null' if self.value is None else self.value}"

    @property
    def name(self) -> str:
        """The cell, in words."""
        what = f"mean {self.metric} over labels" if self.label is None else f"{self.metric} of {self.label}"
        return f"{what}, {self.where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison of two models found.

    Attributes:
        schema_version: of the JSON form.
        passed: whether the challenger may replace the champion.
        failures: why not, a line each, the clearest first.
        champion: what is in use.
        challenger: what is to replace it.
        alignment: how the two tables were brought together.
        labels: that are compared.
        cluster: the column of the units that are resampled together; ``None`` if each item is its own.
        units: how many units are resampled.
        absent_slices: columns to compare by that neither table has.
        metrics: that are compared.
        tolerance: metric to the loss that is accepted.
        alpha: largest chance of any false alarm.
        require: ``no-regression`` or ``non-inferiority``.
        confidence: of each interval.
        replicates: of the bootstrap.
        enough: fewest known positives and negatives of a cell that is compared.
        correction: for so many comparisons.
        compared: cells that were compared.
        tested: those of them in which the models differ; the correction is for these.
        cells: all of them: those that decided first, then by metric, label and group.
        flips: decisions that differ.
    """

    schema_version: int = SCHEMA_VERSION
    passed: bool
    failures: list[str]
    champion: ComparedModel
    challenger: ComparedModel
    alignment: AlignmentSummary
    labels: list[str]
    cluster: str | None
    units: int
    absent_slices: list[str]
    metrics: list[str]
    tolerance: dict[str, float]
    alpha: float
    require: str
    confidence: float
    replicates: int
    enough: int
    correction: str
    compared: int
    tested: int
    cells: list[ComparisonCell]
    flips: PredictionFlips

    def of(self, *verdicts: CellVerdict) -> list[ComparisonCell]:
        """The cells with one of these verdicts, the clearest first."""
        return [cell for cell in self.cells if cell.verdict in verdicts]

    def to_json(self) -> str:
        """As JSON text, which docs/compare.md documents."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def describe_cell(cell: ComparisonCell, tolerance: float) -> str:
    """A comparison in one line."""
    assert cell.delta is not None
    moved = f"{cell.name}: {cell.champion:.3f} → {cell.challenger:.3f} ({cell.delta:+.3f}"
    interval = "" if cell.interval is None else f", interval {cell.interval.low:+.3f} to {cell.interval.high:+.3f}"
    rests_on = f"{cell.positive} positive of {cell.known} known"
    if cell.verdict == "not shown":
        return f"{moved}{interval}; {rests_on}): a loss of more than {tolerance:g} is not excluded"
    p_value = cell.p_worse if cell.verdict == "regression" else cell.p_better
    return f"{moved}{interval}; {rests_on}; corrected p {p_value:.2g})"


def _unknown(metric: str) -> str:
    near = get_close_matches(metric, METRICS, 1)
    return f"no such metric: {metric}{f' (did you mean {near[0]}?)' if near else ''}; the metrics are {', '.join(METRICS)}"
