"""How a model treats content that speaks of one group of people, compared with all other content."""

from dataclasses import dataclass

from vigil_evaluation.stats.intervals import Interval

POWER = -5.0
"""Of the generalised mean over subgroups: the lowest values weigh most. So much in the competition that set the fashion, Jigsaw
Unintended Bias in Toxicity Classification (2019)."""


@dataclass(frozen=True, slots=True)
class SubgroupMetrics:
    """The numbers of one label over one subgroup; ``None`` where one is not defined.

    The AUCs are those of Borkan et al. 2019 (Nuanced Metrics for Measuring Unintended Bias with Real Data for Text
    Classification). *Background* is every item that does not speak of the subgroup.

    Attributes:
        known: items of the subgroup whose target is known.
        positive: those of them that are positive.
        subgroup_auc: positives and negatives of the subgroup alone; low where the model cannot tell them apart within it.
        bpsn_auc: background positives against subgroup negatives; low where harmless items of the subgroup score too high.
        bnsp_auc: background negatives against subgroup positives; low where harmful items of the subgroup score too low.
        recall: share of the subgroup's positives that are flagged at the label's threshold.
        recall_gap: that less the background's (equal opportunity, Hardt et al. 2016, is a gap of 0).
        false_positive_rate: share of the subgroup's negatives that are flagged.
        false_positive_gap: that less the background's.
        intervals: of the numbers above, by name; those that are not defined have none.
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
    """The items that speak of one group of people.

    Attributes:
        identity: the column that says so.
        value: its value; for a column of truth values or shares, the column's own name after the last dot.
        items: how many.
        labels: label to its numbers.
    """

    identity: str
    value: str
    items: int
    labels: dict[str, SubgroupMetrics]


@dataclass(frozen=True, slots=True)
class FairnessResults:
    """All subgroups, and what is made of them together.

    Attributes:
        subgroups: those of the first column first, and of each column the largest first.
        power: the exponent of the means.
        power_means: label to the generalised mean over subgroups of ``subgroup_auc``, ``bpsn_auc`` and ``bnsp_auc``.
        bias_score: label to the mean of its AUROC over all items and the three power means; ``None`` where one of them is.
        absent: columns that were asked for and that the table does not have.
        values_left_out: column to the number of its values beyond those that are kept; columns that keep all are not named.
    """

    subgroups: list[Subgroup]
    power: float
    power_means: dict[str, dict[str, float | None]]
    bias_score: dict[str, float | None]
    absent: list[str]
    values_left_out: dict[str, int]
