"""Fairness: items about one group of people compared with all other items.

Example:
    >>> data = EvaluationData.from_table(table, labels, thresholds, EvaluationSpec(identities=("identity",)))
    >>> fairness = measure_fairness(data, overall_auroc, lambda *_: None)
    >>> fairness.subgroups[0].value, fairness.subgroups[0].labels["hate"].false_positive_gap
    ('deaf', 0.12)
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.fairness.identity_columns import IdentityGroups as IdentityGroups
    from vigil_evaluation.fairness.identity_columns import identity_groups as identity_groups
    from vigil_evaluation.fairness.results import FairnessResults as FairnessResults
    from vigil_evaluation.fairness.results import Subgroup as Subgroup
    from vigil_evaluation.fairness.results import SubgroupMetrics as SubgroupMetrics
    from vigil_evaluation.fairness.subgroup_metrics import measure_fairness as measure_fairness
    from vigil_evaluation.fairness.subgroup_metrics import power_mean as power_mean

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "FairnessResults": "vigil_evaluation.fairness.results",
        "IdentityGroups": "vigil_evaluation.fairness.identity_columns",
        "Subgroup": "vigil_evaluation.fairness.results",
        "SubgroupMetrics": "vigil_evaluation.fairness.results",
        "identity_groups": "vigil_evaluation.fairness.identity_columns",
        "measure_fairness": "vigil_evaluation.fairness.subgroup_metrics",
        "power_mean": "vigil_evaluation.fairness.subgroup_metrics",
    },
)
