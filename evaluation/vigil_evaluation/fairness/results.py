"""Fairness results: items about one group of people compared with all other items."""

from dataclasses import dataclass

from vigil_evaluation.stats.intervals import Interval

POWER = -5.0
"""Exponent of the generalised mean over subgroups, in which the lowest values weigh most; from the competition Jigsaw Unintended
Bias in Toxicity Classification (2019)."""


@dataclass(frozen=True, slots=True)
class SubgroupMetrics:
    """Metrics of one label over one subgroup; ``None`` where undefined.

    The AUCs are those of Borkan et al. 2019 (Nuanced Metrics for Measuring Unintended Bias with Real Data for Text
    Classification). The *background* is every item that is not about the subgroup.

    Attributes:
        known: items of the subgroup whose target is known.
        positive: known items that are positive.
        subgroup_auc: positives against negatives of the subgroup; low if the model cannot separate them.
        bpsn_auc: background positives against subgroup negatives; low if harmless items of the subgroup score too high.
        bnsp_auc: background negatives against subgroup positives; low if harmful items of the subgroup score too low.
        recall: share of the subgroup's positives that are flagged at the label's threshold.
        recall_gap: recall minus the background's (equal opportunity, Hardt et al. 2016, is a gap of 0).
        false_positive_rate: share of the subgroup's negatives that are flagged.
        false_positive_gap: false-positive rate minus the background's.
        intervals: interval of each metric that is not ``None``.
    """

    known: int
    positive: int
    subgroup_auc: float | None
    bpsn_auc: float | None
    bnsp_auc: float | None
    recall: float | None
    recall_gap: float | None
    false_positive_rate: float | None
    false_positive_gap: float | None
    intervals: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Subgroup:
    """Items about one group of people.

    Attributes:
        identity: the identity column.
        value: the group; for a column of truth values or shares, the column's name after the last dot.
        items: number of items.
        labels: metrics of each label.
    """

    identity: str
    value: str
    items: int
    labels: dict[str, SubgroupMetrics]


@dataclass(frozen=True, slots=True)
class FairnessResults:
    """Metrics of all subgroups, and their averages.

    Attributes:
        subgroups: by column, the largest first.
        power: exponent of the generalised means.
        power_means: label to the generalised mean over subgroups of ``subgroup_auc``, ``bpsn_auc`` and ``bnsp_auc``.
        bias_score: label to the mean of its AUROC over all items and the three power means; ``None`` if one of them is.
        absent: requested columns that the table lacks.
        values_left_out: column to the number of its groups that are not kept, if any.
    """

    subgroups: list[Subgroup]
    power: float
    power_means: dict[str, dict[str, float | None]]
    bias_score: dict[str, float | None]
    absent: list[str]
    values_left_out: dict[str, int]
