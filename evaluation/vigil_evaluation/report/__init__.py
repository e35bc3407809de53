"""Self-contained HTML pages of an evaluation, of a comparison, of a functional test suite and of a dataset.

Example:
    >>> from vigil_evaluation.report import render_evaluation_page
    >>> render_evaluation_page(results, data, "report.html")
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.report.comparison_page import render_comparison_page as render_comparison_page
    from vigil_evaluation.report.dataset_card_page import render_dataset_card as render_dataset_card
    from vigil_evaluation.report.evaluation_page import render_evaluation_page as render_evaluation_page
    from vigil_evaluation.report.evidence import ItemExample as ItemExample
    from vigil_evaluation.report.evidence import SegmentEvidence as SegmentEvidence
    from vigil_evaluation.report.hardest_errors import hardest_error_ids as hardest_error_ids
    from vigil_evaluation.report.suite_page import render_suite_page as render_suite_page
    from vigil_evaluation.report.suite_page import suite_remarks as suite_remarks
    from vigil_evaluation.report.summary import Remark as Remark
    from vigil_evaluation.report.summary import remarks as remarks
    from vigil_evaluation.report.summary import summary_sentences as summary_sentences

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ItemExample": "vigil_evaluation.report.evidence",
        "Remark": "vigil_evaluation.report.summary",
        "SegmentEvidence": "vigil_evaluation.report.evidence",
        "hardest_error_ids": "vigil_evaluation.report.hardest_errors",
        "remarks": "vigil_evaluation.report.summary",
        "render_comparison_page": "vigil_evaluation.report.comparison_page",
        "render_dataset_card": "vigil_evaluation.report.dataset_card_page",
        "render_evaluation_page": "vigil_evaluation.report.evaluation_page",
        "render_suite_page": "vigil_evaluation.report.suite_page",
        "suite_remarks": "vigil_evaluation.report.suite_page",
        "summary_sentences": "vigil_evaluation.report.summary",
    },
)
