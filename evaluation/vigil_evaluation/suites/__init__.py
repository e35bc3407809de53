"""Functional tests: accuracy case by case, by group, and on minimal pairs.

Example:
    >>> results = functional_test_results(EvaluationData.from_table(table, labels, thresholds, spec))
    >>> results.cases[0].name, results.cases[0].labels["hate"].accuracy.value
    ('negation', 0.82)
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.suites.minimal_pairs import MinimalPairResults as MinimalPairResults
    from vigil_evaluation.suites.minimal_pairs import minimal_pair_results as minimal_pair_results
    from vigil_evaluation.suites.results import FunctionalTestResults as FunctionalTestResults
    from vigil_evaluation.suites.results import SuiteColumns as SuiteColumns
    from vigil_evaluation.suites.results import SuiteResults as SuiteResults
    from vigil_evaluation.suites.results import functional_test_results as functional_test_results

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "FunctionalTestResults": "vigil_evaluation.suites.results",
        "MinimalPairResults": "vigil_evaluation.suites.minimal_pairs",
        "SuiteColumns": "vigil_evaluation.suites.results",
        "SuiteResults": "vigil_evaluation.suites.results",
        "functional_test_results": "vigil_evaluation.suites.results",
        "minimal_pair_results": "vigil_evaluation.suites.minimal_pairs",
    },
)
