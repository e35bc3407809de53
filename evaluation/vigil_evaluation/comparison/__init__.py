"""Paired comparison of two models on the same items, with a release gate.

Example:
    >>> from vigil_evaluation.comparison.compare import compare
    >>> comparison, flips = compare(champion, challenger, EvaluationSpec(), ReleaseGate(tolerance=0.02))
    >>> comparison.passed, comparison.failures
    (True, [])
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.comparison.alignment import ScoredModel as ScoredModel
    from vigil_evaluation.comparison.results import Comparison as Comparison
    from vigil_evaluation.comparison.results import ComparisonCell as ComparisonCell
    from vigil_evaluation.comparison.results import ReleaseGate as ReleaseGate

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Comparison": "vigil_evaluation.comparison.results",
        "ComparisonCell": "vigil_evaluation.comparison.results",
        "ReleaseGate": "vigil_evaluation.comparison.results",
        "ScoredModel": "vigil_evaluation.comparison.alignment",
    },
)
