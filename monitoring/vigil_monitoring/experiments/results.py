"""Results of an experiment, as `vigil monitor experiment --to FILE.json` writes them (kind ``experiment``)."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

from vigil_data.filesystem import sha256_json
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.experiments.sample_ratio import SampleRatio

Verdict = Literal["promote", "continue", "reject"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm.

    Attributes:
        bundle: hash of its bundle; ``None`` where the traffic has none.
        policy: name and version of its policy.
        decisions: its decisions in the traffic.
        reviewed: reviewed decisions with a known answer.
    """

    bundle: str | None
    policy: str | None
    decisions: int
    reviewed: int


@dataclass(frozen=True, slots=True)
class LookResult:
    """The difference at one look.

    Attributes:
        day: last day that the look includes, such as ``2026-11-01``.
        difference: challenger minus champion; ``None`` where it is undefined, or too few rows are behind it.
        interval: confidence sequence of the difference; ``None`` where nothing can be excluded yet.
    """

    day: str
    difference: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class MetricResult:
    """A metric of the verdict, or a guardrail in one slice.

    Attributes:
        name: the metric, for reports.
        column: column of the slice; ``None`` for all decisions.
        value: value of the column; ``None`` for null.
        goal: ``superior``, ``not_inferior`` or ``guardrail``.
        margin: margin of the goal.
        better: ``higher`` or ``lower``.
        champion: the champion's value at the last look.
        challenger: the challenger's value.
        difference: challenger minus champion.
        interval: confidence sequence of the difference at the last look, not corrected for the number of metrics.
        rows: rows behind the champion's value and behind the challenger's.
        met: day at which the goal was met; ``None`` if it was not, and for guardrails.
        failed: day at which it was shown to fail, corrected for the number of metrics and slices.
        p_met: p-value of "the goal is not met", valid at every look.
        p_failed: corrected p-value of "the goal is met", valid at every look.
        without_answers: share of the weight of the reviewed rows without an answer.
        bounds: the difference if every missing answer were 0, and if every one were 1, in order, if more than 5 % are missing.
        looks: the difference at each look.
    """

    name: str
    column: str | None
    value: str | None
    goal: str
    margin: float
    better: str
    champion: float | None
    challenger: float | None
    difference: float | None
    interval: Interval | None
    rows: tuple[int, int]
    met: str | None
    failed: str | None
    p_met: float
    p_failed: float
    without_answers: float | None
    bounds: tuple[float, float] | None
    looks: tuple[LookResult, ...]

    @property
    def where(self) -> str:
        """The slice, for reports."""
        return "" if self.column is None else f"{self.column} = {'null' if self.value is None else self.value}"

    @property
    def title(self) -> str:
        """Metric and slice, for reports."""
        return self.name if self.column is None else f"{self.name}, {self.where}"


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """An experiment up to now.

    Attributes:
        name: its name.
        verdict: ``promote``, ``continue`` or ``reject``.
        reason: why, in one sentence.
        decided: day of the look that decided; ``None`` for ``continue``.
        split: ``shadow``, ``hash``, ``column`` or ``switchback``.
        days: days with decisions.
        horizon_days: planned number of days.
        alpha: probability of a wrong verdict at any look.
        champion: arm of the champion.
        challenger: arm of the challenger.
        ratio: units of the arms, for a hash or column split.
        problems: what makes the arms not comparable; no verdict is given then.
        notes: what was left out.
        metrics: metrics of the verdict.
        guardrails: guardrails, in each slice.
        digest: SHA-256 of all other fields, set by :meth:`with_digest`.
    """

    name: str
    verdict: Verdict
    reason: str
    decided: str | None
    split: str
    days: int
    horizon_days: int
    alpha: float
    champion: Arm
    challenger: Arm
    ratio: SampleRatio | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    metrics: tuple[MetricResult, ...]
    guardrails: tuple[MetricResult, ...]
    digest: str = ""

    def with_digest(self) -> "ExperimentResult":
        """Return the result with its digest, by which a file that was altered is recognized."""
        fields = asdict(self)
        del fields["digest"]
        return replace(self, digest=sha256_json(fields))
