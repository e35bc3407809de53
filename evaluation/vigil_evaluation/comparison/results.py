"""Release gate and results of a comparison of two models, in every metric, label and slice.

A regression is a cell (a metric of a label on a slice) that is worse by more than the tolerance, with a correction for the number
of comparisons. :mod:`vigil_evaluation.comparison.compare` makes the comparison.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Literal

from vigil_data.errors import UserError, percent_hint
from vigil_data.filesystem import sha256_json
from vigil_evaluation.comparison.alignment import AlignmentSummary
from vigil_evaluation.comparison.paired_differences import LOWER_IS_BETTER
from vigil_evaluation.comparison.prediction_flips import PredictionFlips
from vigil_evaluation.stats.bootstrap import METRICS
from vigil_evaluation.stats.intervals import Interval

SCHEMA_VERSION = 1
"""Version of comparison.json (docs/compare.md); incremented when a field is removed or changes its meaning."""

GATED_METRICS = ("average_precision", "recall", "false_positive_rate", "brier")
"""Default metrics: of ranking, of decisions in both directions, and of probabilities."""

Require = Literal["no-regression", "non-inferiority"]
CellVerdict = Literal["regression", "not shown", "improvement", "no evidence", "the same", "not comparable"]


@dataclass(frozen=True, slots=True)
class ReleaseGate:
    """Conditions for the challenger to pass.

    Attributes:
        metrics: metrics to compare.
        tolerance: accepted loss, in the unit of the metric.
        tolerances: metric to its own tolerance.
        alpha: largest probability that a challenger that is nowhere worse than the tolerance fails.
        require: ``no-regression``: no cell is shown to be worse than the tolerance; ``non-inferiority``: every cell is shown not
            to be.
        slices: additional columns to slice by, which must exist.
    """

    metrics: tuple[str, ...] = GATED_METRICS
    tolerance: float = 0.01
    tolerances: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 0.05
    require: Require = "no-regression"
    slices: tuple[str, ...] = ()

    def tolerance_of(self, metric: str) -> float:
        """Return the accepted loss of a metric."""
        return self.tolerances.get(metric, self.tolerance)

    def check(self) -> None:
        """Check the settings.

        Raises:
            UserError: one line for each invalid setting.
        """
        problems = [_unknown(name) for name in dict.fromkeys([*self.metrics, *self.tolerances]) if name not in METRICS]
        if not self.metrics:
            problems.append("no metric to compare; name some of " + ", ".join(METRICS))
        given = {"": self.tolerance, **self.tolerances}
        problems += [
            f"tolerance {f'of {name} ' if name else ''}{value}: must be a number of at least 0"
            for name, value in given.items()
            if not 0 <= value < float("inf")
        ]
        problems += [
            f"tolerance {f'of {name} ' if name else ''}{value:g}: a loss of more than 1 is impossible{percent_hint(value)}"
            for name, value in given.items()
            if 1 < value < float("inf") and name != "log_loss" and (name or "log_loss" not in self.metrics)
        ]
        if not 0 < self.alpha < 1:
            problems.append(f"alpha {self.alpha}: must lie between 0 and 1{percent_hint(self.alpha)}")
        if problems:
            raise UserError(*problems)


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One of the compared models.

    Attributes:
        name: its path, as given.
        kind: ``table``, ``run`` or ``bundle``.
        thresholds: label to the lowest flagged probability.
        policy: name and version of its compiled policy, if any.
        facts: provenance of its predictions, as text.
    """

    name: str
    kind: str
    thresholds: dict[str, float]
    policy: str | None
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class ComparisonCell:
    """One comparison: a metric of a label on a group of items.

    Attributes:
        metric: name of the metric.
        label: the label; ``None`` for the mean over the comparable labels.
        column: column of the group; ``None`` for all items.
        value: value of the column; ``None`` for null.
        known: known targets.
        positive: known positives.
        champion: estimate of the champion; ``None`` if undefined.
        challenger: estimate of the challenger.
        delta: challenger minus champion.
        interval: interval of the delta, not corrected.
        p_worse: p-value of the hypothesis that the challenger is no worse than the tolerance, corrected.
        p_better: p-value of the hypothesis that the challenger is no better, corrected.
        verdict: ``regression``, ``not shown`` (non-inferiority was required and is not shown), ``improvement``, ``no evidence``,
            ``the same`` (no difference that affects the metric) or ``not comparable``.
        why: reason why it is not comparable.
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
        """The delta, signed so that more is better; 0 if undefined."""
        return (self.delta or 0.0) * (-1 if self.metric in LOWER_IS_BETTER else 1)

    @property
    def where(self) -> str:
        """The group of items, for reports."""
        if self.column is None:
            return "all items"
        return f"{self.column} = {'null' if self.value is None else self.value}"

    @property
    def name(self) -> str:
        """The cell, for reports."""
        what = f"mean {self.metric} over labels" if self.label is None else f"{self.metric} of {self.label}"
        return f"{what}, {self.where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Comparison of two models.

    Attributes:
        schema_version: version of the JSON form.
        passed: whether the challenger passes the gate.
        failures: reasons why not, one line each, the clearest first.
        champion: the model in use.
        challenger: the candidate.
        alignment: excluded items, labels and targets.
        labels: compared labels.
        cluster: column of the units that are resampled together; ``None`` if items are independent.
        units: number of units.
        weighted: whether items count as the number of items that they represent; counts are unweighted.
        absent_slices: requested columns that neither table has.
        metrics: compared metrics.
        tolerance: metric to the accepted loss.
        alpha: largest probability of any false alarm.
        require: ``no-regression`` or ``non-inferiority``.
        confidence: confidence of each interval.
        replicates: bootstrap replicates.
        enough: fewest known positives and negatives of a compared cell.
        correction: method of the correction for the number of comparisons.
        compared: number of compared cells.
        tested: number of those in which the models differ, which the correction is for.
        cells: all cells, the decisive ones first, then by metric, label and group.
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
    weighted: bool
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
        """Return the cells with one of these verdicts, the clearest first."""
        return [cell for cell in self.cells if cell.verdict in verdicts]

    def to_json(self) -> str:
        """Return the JSON text, with the SHA-256 of the rest as ``digest``; see docs/compare.md."""
        fields = asdict(self)
        return json.dumps({**fields, "digest": sha256_json(fields)}, indent=1, allow_nan=False) + "\n"


def describe_cell(cell: ComparisonCell, tolerance: float) -> str:
    """Describe a cell in one line."""
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
