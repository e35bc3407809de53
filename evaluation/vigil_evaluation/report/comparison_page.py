"""Comparison of two models as one self-contained HTML page."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vigil_data.filesystem import StrPath
from vigil_evaluation.comparison.paired_differences import LOWER_IS_BETTER
from vigil_evaluation.comparison.results import Comparison, ComparisonCell
from vigil_evaluation.report.axes import Axis, fit_axis
from vigil_evaluation.report.rendering import render_page
from vigil_evaluation.stats.intervals import Interval

MAX_ROWS = 100
"""Rows of each table of regressions, improvements or missing comparisons; comparison.json has all."""


@dataclass(frozen=True, slots=True)
class SliceTable:
    """Differences of one metric in the groups of one column.

    Attributes:
        column: grouping column.
        rows: value of the column to cells by label; label ``None`` is the mean over labels.
    """

    column: str
    rows: dict[str | None, dict[str | None, ComparisonCell]]


@dataclass(frozen=True, slots=True)
class MetricSection:
    """Differences of one metric.

    Attributes:
        name: name of the metric.
        tolerance: accepted loss.
        limit: difference beyond which a loss exceeds the tolerance.
        less_is_better: whether lower values are better.
        overall: cells of all items.
        axis: axis of the overall cells.
        slices: one table per grouping column.
    """

    name: str
    tolerance: float
    limit: float
    less_is_better: bool
    overall: list[ComparisonCell]
    axis: Axis
    slices: list[SliceTable]


def render_comparison_page(comparison: Comparison, to: StrPath) -> None:
    """Write the comparison page atomically.

    Args:
        comparison: result of :func:`vigil_evaluation.comparison.compare.compare`.
        to: HTML file.
    """
    render_page(
        "comparison.html.jinja",
        to,
        comparison=comparison,
        verdict_tables=[
            ("regressions", "Regressions beyond the tolerance", comparison.of("regression"), "p_worse"),
            ("inconclusive", "Regressions not ruled out", comparison.of("not shown"), "p_worse"),
            ("improvements", "Improvements", comparison.of("improvement"), "p_better"),
        ],
        metrics=[_metric_section(comparison, name) for name in comparison.metrics],
        gain_axis=lambda cells: delta_axis(map(as_gain, cells)),
        as_gain=as_gain,
        max_rows=MAX_ROWS,
    )


def delta_axis(cells: Iterable[ComparisonCell], *marks: float) -> Axis:
    """Return an axis that covers the differences, their intervals, 0 and further marks."""
    ends = [end for cell in cells for end in (cell.delta, *(cell.interval or ()))]
    return fit_axis([*ends, 0.0, *marks], minimum=-1.0)


def as_gain(cell: ComparisonCell) -> ComparisonCell:
    """Return the cell with difference and interval negated where less is better, to share an axis with other metrics."""
    low, high = cell.interval or (0.0, 0.0)
    interval = Interval(-high, -low) if cell.interval and cell.metric in LOWER_IS_BETTER else cell.interval
    return replace(cell, delta=cell.gain, interval=interval)


def _metric_section(comparison: Comparison, name: str) -> MetricSection:
    cells = [cell for cell in comparison.cells if cell.metric == name]
    order = {label: rank for rank, label in enumerate([None, *comparison.labels])}
    overall = sorted((cell for cell in cells if cell.column is None), key=lambda cell: order[cell.label])
    columns: dict[str, dict[str | None, dict[str | None, ComparisonCell]]] = {}
    for cell in cells:
        if cell.column is not None:
            columns.setdefault(cell.column, {}).setdefault(cell.value, {})[cell.label] = cell
    slices = [
        SliceTable(column, dict(sorted(rows.items(), key=lambda row: -max(cell.known for cell in row[1].values()))))
        for column, rows in columns.items()
    ]
    tolerance = comparison.tolerance[name]
    limit = tolerance if name in LOWER_IS_BETTER else -tolerance
    return MetricSection(name, tolerance, limit, name in LOWER_IS_BETTER, overall, delta_axis(overall, limit), slices)
