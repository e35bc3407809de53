"""Evaluation report: one self-contained HTML page, which fetches nothing and executes nothing from the table."""

from collections.abc import Mapping
from types import MappingProxyType

from vigil_data.filesystem import StrPath
from vigil_evaluation.evaluation_data import EvaluationData
from vigil_evaluation.metrics import operating_points
from vigil_evaluation.report import curves as plot
from vigil_evaluation.report.curves import label_curves
from vigil_evaluation.report.evidence import ItemExample
from vigil_evaluation.report.fairness_heatmap import HEATMAP_COLUMNS, MAX_SUBGROUPS, heatmap_rows
from vigil_evaluation.report.hardest_errors import hardest_errors
from vigil_evaluation.report.rendering import render_page
from vigil_evaluation.report.slice_plot import slice_plots
from vigil_evaluation.report.summary import biased_labels, remarks, summary_sentences
from vigil_evaluation.report.threshold_explorer import threshold_explorer
from vigil_evaluation.results import EvaluationResults

MAX_DEPENDENCES = 20
"""Scores and columns on which known targets depend, on the page; metrics.json has all."""

OPEN_LABELS = 3
"""Labels whose curves are unfolded when the page is opened."""


def render_evaluation_page(
    results: EvaluationResults, data: EvaluationData, to: StrPath, examples: Mapping[str, ItemExample] = MappingProxyType({})
) -> None:
    """Write the evaluation report atomically.

    Args:
        results: results of :func:`vigil_evaluation.evaluate.evaluate_data` for ``data``.
        data: parsed predictions table, for the curves and the hardest errors; the table's ``text`` column, if present, gives the
            texts of items without an example.
        to: HTML file.
        examples: id to content of an item; only those of :func:`hardest_error_ids` are shown.
    """
    columns = [breakdown.column for breakdown in results.by if breakdown.column in data.columns]
    sections = []
    for i, (label, numbers) in enumerate(results.overall.labels.items()):
        targets_N, probabilities_N = data.targets_NL[:, i], data.probabilities_NL[:, i]
        points = operating_points(targets_N, probabilities_N, data.weights.label_N)
        false_positives, false_negatives = (
            {"count": errors.count, "entries": errors.entries(data.table, columns, examples, label)}
            for errors in hardest_errors(targets_N, probabilities_N, numbers.threshold)
        )
        sections.append(
            {
                "name": label,
                "numbers": numbers,
                "curves": label_curves(targets_N, probabilities_N, points, numbers, data.weights.label_N),
                "explorer": threshold_explorer(points, probabilities_N, numbers.threshold, data.weights.item_N),
                "false_positives": false_positives,
                "false_negatives": false_negatives,
            }
        )
    render_page(
        "evaluation.html.jinja",
        to,
        results=results,
        biased_labels=biased_labels(results),
        max_dependences=MAX_DEPENDENCES,
        summary=summary_sentences(results),
        remarks=remarks(results),
        labels=sections,
        slices=slice_plots(results),
        heatmaps={label: heatmap_rows(results, label) for label in data.labels} if results.fairness is not None else {},
        heatmap_columns=HEATMAP_COLUMNS,
        max_subgroups=MAX_SUBGROUPS,
        open_labels=OPEN_LABELS,
        plot=plot,
    )
