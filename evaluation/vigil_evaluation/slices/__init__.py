"""Slices: metrics of groups of items, and the search for the groups with the worst decisions.

Example:
    >>> columns = TableColumns(table)
    >>> worst = discover_slices(columns, ["language", "presence"], data.right_N, Resampling(1000))
    >>> worst.slices[0].conditions, worst.slices[0].difference
    ([Condition(column='language', value='de')], -0.21)
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.slices.breakdown import measure_groups as measure_groups
    from vigil_evaluation.slices.discovery import SliceDiscovery as SliceDiscovery
    from vigil_evaluation.slices.discovery import discover_slices as discover_slices
    from vigil_evaluation.slices.grouping import Grouping as Grouping
    from vigil_evaluation.slices.grouping import TableColumns as TableColumns
    from vigil_evaluation.slices.results import Breakdown as Breakdown
    from vigil_evaluation.slices.results import GroupMetrics as GroupMetrics
    from vigil_evaluation.slices.results import LabelMetrics as LabelMetrics

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Breakdown": "vigil_evaluation.slices.results",
        "GroupMetrics": "vigil_evaluation.slices.results",
        "Grouping": "vigil_evaluation.slices.grouping",
        "LabelMetrics": "vigil_evaluation.slices.results",
        "SliceDiscovery": "vigil_evaluation.slices.discovery",
        "TableColumns": "vigil_evaluation.slices.grouping",
        "discover_slices": "vigil_evaluation.slices.discovery",
        "measure_groups": "vigil_evaluation.slices.breakdown",
    },
)
