"""Evaluation of any model's scores: metrics with intervals, slices, fairness, calibration, comparison, policies and reports.

Everything works on arrays and Arrow tables, without torch. Names are imported on first use.

Example:
    >>> from vigil_evaluation import EvaluationSpec, evaluate_table, prediction_labels, read_predictions
    >>> table = read_predictions("predictions.parquet")
    >>> labels = prediction_labels(table)
    >>> results = evaluate_table(table, labels, dict.fromkeys(labels, 0.5), EvaluationSpec(slices=("language",)), {})
    >>> results.overall.labels["spam"].average_precision, results.overall.labels["spam"].intervals["average_precision"]
    (0.91, Interval(low=0.88, high=0.93))
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.evaluate import evaluate_data as evaluate_data
    from vigil_evaluation.evaluate import evaluate_table as evaluate_table
    from vigil_evaluation.evaluation_data import EvaluationData as EvaluationData
    from vigil_evaluation.predictions import prediction_arrays as prediction_arrays
    from vigil_evaluation.predictions import prediction_labels as prediction_labels
    from vigil_evaluation.predictions import read_predictions as read_predictions
    from vigil_evaluation.results import EvaluationResults as EvaluationResults
    from vigil_evaluation.results_schema import metrics_schema as metrics_schema
    from vigil_evaluation.specs import EvaluationSpec as EvaluationSpec

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "EvaluationData": "vigil_evaluation.evaluation_data",
        "EvaluationResults": "vigil_evaluation.results",
        "EvaluationSpec": "vigil_evaluation.specs",
        "evaluate_data": "vigil_evaluation.evaluate",
        "evaluate_table": "vigil_evaluation.evaluate",
        "metrics_schema": "vigil_evaluation.results_schema",
        "prediction_arrays": "vigil_evaluation.predictions",
        "prediction_labels": "vigil_evaluation.predictions",
        "read_predictions": "vigil_evaluation.predictions",
    },
)
