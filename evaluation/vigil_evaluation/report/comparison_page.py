"""A comparison of two models as one self-contained HTML page."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vigil_evaluation.comparison.paired_differences import LESS_IS_BETTER
from vigil_evaluation.comparison.results import Cell, Comparison
from vigil_evaluation.report.axes import Axis, axis
from vigil_evaluation.report.rendering import render_page
from vigil_evaluation.stats.intervals import Interval

SHOWN = 100
"""The most cells of one list."""


@dataclass(frozen=True, slots=True)
class Slices:
    """The deltas of one metric in the groups of one column.

    Attributes:
        column: by which the items are grouped.
        rows: value of the column to the cells by label, ``None`` for the mean over labels.
    """

    column: str
    rows: dict[str | None, dict[str | None, Cell]]


@dataclass(frozen=True, slots=True)
class Metric:
    """All deltas of one metric.

    Attributes:
        name: of the metric.
        tolerance: the loss that is accepted.
        limit: the delta from which on a loss is no longer accepted.
        less_is_better: whether a smaller value is the better one.
        overall: the cells of all items.
        axis: on which they are drawn.
        slices: the groups of each column.
    """

    name: str
    tolerance: float
    limit: float
    less_is_better: bool
    overall: list[Cell]
    axis: Axis
    slices: list[Slices]


def render_comparison(comparison: Comparison, to: Path) -> None:
    """Write the page.

    Args:
        comparison: what was found.
        to: the HTML file, written whole or not at all.
    """
    render_page(
        "comparison.html.jinja",
        to,
        found=comparison,
        lists=[
            ("regressions", "Worse by more than the tolerance", comparison.of("regression"), "p_worse"),
            ("open", "A loss of more than the tolerance is not excluded", comparison.of("not shown"), "p_worse"),
            ("improvements", "Better", comparison.of("improvement"), "p_better"),
        ],
        metrics=[_metric(comparison, name) for name in comparison.metrics],
        fitted=fitted,
        turned=turned,
        shown=SHOWN,
    )


def fitted(cells: Iterable[Cell], *also: float, turn: bool = False) -> Axis:
    """An axis that holds all deltas, or gains, their intervals, 0 and what else is drawn."""
    drawn = [turned(cell) if turn else cell for cell in cells]
    ends = [end for cell in drawn for end in (cell.delta, *(cell.interval or ()))]
    return axis([*ends, 0.0, *also], least=-1.0)


def turned(cell: Cell) -> Cell:
    """The cell with its delta and interval turned so that more is better, to be drawn among those of other metrics."""
    low, high = cell.interval or (0.0, 0.0)
    interval = Interval(-high, -low) if cell.interval and cell.metric in LESS_IS_BETTER else cell.interval
    return replace(cell, delta=cell.gain, interval=interval)


def _metric(comparison: Comparison, name: str) -> Metric:
    cells = [cell for cell in comparison.cells if cell.metric == name]
    order = {label: place for place, label in enumerate([None, *comparison.labels])}
    overall = sorted((cell for cell in cells if cell.column is None), key=lambda cell: order[cell.label])
    columns: dict[str, dict[str | None, dict[str | None, Cell]]] = {}
    for cell in cells:
        if cell.column is not None:
            columns.setdefault(cell.column, {}).setdefault(cell.value, {})[cell.label] = cell
    slices = [Slices(column, dict(sorted(rows.items(), key=lambda row: -_known(row[1])))) for column, rows in columns.items()]
    tolerance = comparison.tolerance[name]
    limit = tolerance if name in LESS_IS_BETTER else -tolerance
    return Metric(name, tolerance, limit, name in LESS_IS_BETTER, overall, fitted(overall, limit), slices)


def _known(cells: dict[str | None, Cell]) -> int:
    return max(cell.known for cell in cells.values())
