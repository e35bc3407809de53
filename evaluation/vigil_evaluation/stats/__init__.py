"""Statistics: Poisson bootstrap, BCa and binomial intervals, exact tests and multiple testing.

Example:
    >>> resampling = Resampling(replicates=1000, seed=0, clusters=author_N)
    >>> replicates = replicate(targets_NL, probabilities_NL, [np.zeros(len(targets_NL), int)], parameters, resampling)
    >>> interval(replicates.estimates["auroc"][0, 0], replicates.samples["auroc"][:, 0, 0], 0.95)
    Interval(low=0.86, high=0.91)
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.stats.binomial import clopper_pearson as clopper_pearson
    from vigil_evaluation.stats.binomial import design_effect as design_effect
    from vigil_evaluation.stats.binomial import kish_design_effect as kish_design_effect
    from vigil_evaluation.stats.binomial import korn_graubard as korn_graubard
    from vigil_evaluation.stats.binomial import wilson as wilson
    from vigil_evaluation.stats.bootstrap import METRICS as METRICS
    from vigil_evaluation.stats.bootstrap import MetricParameters as MetricParameters
    from vigil_evaluation.stats.bootstrap import Replicates as Replicates
    from vigil_evaluation.stats.bootstrap import Resampling as Resampling
    from vigil_evaluation.stats.bootstrap import replicate as replicate
    from vigil_evaluation.stats.bootstrap import replicate_ratio as replicate_ratio
    from vigil_evaluation.stats.exact_tests import fisher_p_values as fisher_p_values
    from vigil_evaluation.stats.intervals import Interval as Interval
    from vigil_evaluation.stats.intervals import interval as interval
    from vigil_evaluation.stats.multiple_testing import holm as holm
    from vigil_evaluation.stats.multiple_testing import step_down as step_down
    from vigil_evaluation.stats.proportions import group_means as group_means
    from vigil_evaluation.stats.proportions import group_proportions as group_proportions
    from vigil_evaluation.stats.selection_tests import LabelDependence as LabelDependence
    from vigil_evaluation.stats.selection_tests import LabelSelection as LabelSelection
    from vigil_evaluation.stats.selection_tests import label_selection as label_selection

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "METRICS": "vigil_evaluation.stats.bootstrap",
        "Interval": "vigil_evaluation.stats.intervals",
        "LabelDependence": "vigil_evaluation.stats.selection_tests",
        "LabelSelection": "vigil_evaluation.stats.selection_tests",
        "MetricParameters": "vigil_evaluation.stats.bootstrap",
        "Replicates": "vigil_evaluation.stats.bootstrap",
        "Resampling": "vigil_evaluation.stats.bootstrap",
        "clopper_pearson": "vigil_evaluation.stats.binomial",
        "design_effect": "vigil_evaluation.stats.binomial",
        "fisher_p_values": "vigil_evaluation.stats.exact_tests",
        "group_means": "vigil_evaluation.stats.proportions",
        "group_proportions": "vigil_evaluation.stats.proportions",
        "holm": "vigil_evaluation.stats.multiple_testing",
        "interval": "vigil_evaluation.stats.intervals",
        "kish_design_effect": "vigil_evaluation.stats.binomial",
        "label_selection": "vigil_evaluation.stats.selection_tests",
        "korn_graubard": "vigil_evaluation.stats.binomial",
        "replicate": "vigil_evaluation.stats.bootstrap",
        "replicate_ratio": "vigil_evaluation.stats.bootstrap",
        "step_down": "vigil_evaluation.stats.multiple_testing",
        "wilson": "vigil_evaluation.stats.binomial",
    },
)
