"""Findings as one self-contained HTML page, which fetches nothing and runs nothing out of the table it shows."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from vigil_evaluation.metrics import operating_points
from vigil_evaluation.predictions import arrays
from vigil_evaluation.report import curves as plot
from vigil_evaluation.report.curves import charts
from vigil_evaluation.report.evidence import Example
from vigil_evaluation.report.fairness_heatmap import COLUMNS, gap_rows
from vigil_evaluation.report.hardest_errors import mistakes
from vigil_evaluation.report.rendering import render_page
from vigil_evaluation.report.slice_plot import slice_plot
from vigil_evaluation.report.summary import remarks, verdict
from vigil_evaluation.report.threshold_explorer import explorer
from vigil_evaluation.results import Findings

OPEN = 3
"""Labels whose pictures are unfolded when the page is opened."""


def render(findings: Findings, table: pa.Table, to: Path, examples: Mapping[str, Example] = MappingProxyType({})) -> None:
    """Write the report.

    Args:
        findings: what :func:`vigil_evaluation.evaluate.evaluate` found in ``table``.
        table: the predictions table, for the pictures and the hardest errors; texts are taken from its ``text`` column, if it has
            one, where ``examples`` has none.
        to: the HTML file, written whole or not at all.
        examples: id to what is shown of an item; those of :func:`vigil_evaluation.report.summary.hardest` are used.
    """
    labels = list(findings.overall.labels)
    targets_NL, probabilities_NL = arrays(table, labels)
    columns = [breakdown.column for breakdown in findings.by if breakdown.column in table.column_names]
    details = []
    for i, (label, numbers) in enumerate(findings.overall.labels.items()):
        targets_N, probabilities_N = targets_NL[:, i], probabilities_NL[:, i]
        points = operating_points(targets_N, probabilities_N)
        wrong = mistakes(targets_N, probabilities_N, numbers.threshold)
        details.append(
            {
                "name": label,
                "numbers": numbers,
                "charts": charts(targets_N, probabilities_N, points, numbers),
                "explorer": explorer(points, probabilities_N, numbers.threshold),
                "mistakes": [side.shown(table, columns, examples, label) for side in wrong],
            }
        )
    render_page(
        "evaluation.html.jinja",
        to,
        findings=findings,
        verdict=verdict(findings),
        remarks=remarks(findings),
        details=details,
        slices=[slice_plot(breakdown, findings.overall) for breakdown in findings.by if breakdown.groups],
        gaps={label: gap_rows(findings, label) for label in labels} if findings.fairness is not None else {},
        gap_columns=COLUMNS,
        unfolded=OPEN,
        plot=plot,
    )
