"""Runs: the run folder, prediction with a run's model, calibration.

Example:
    >>> run = Run("runs/demo")
    >>> outputs = predict_rows(run, run.dataset(), run.dataset().rows("test"))
    >>> table = outputs_to_table(outputs, run, run.dataset(), run.dataset().rows("test"))
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.runs.calibrate import recalibrate as recalibrate
    from vigil_training.runs.predict import ModelOutputs as ModelOutputs
    from vigil_training.runs.predict import outputs_to_table as outputs_to_table
    from vigil_training.runs.predict import predict_batches as predict_batches
    from vigil_training.runs.predict import predict_rows as predict_rows
    from vigil_training.runs.prediction_table import predictions_table as predictions_table
    from vigil_training.runs.run import Run as Run
    from vigil_training.runs.run import check_run as check_run
    from vigil_training.runs.run import open_run as open_run

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ModelOutputs": "vigil_training.runs.predict",
        "Run": "vigil_training.runs.run",
        "check_run": "vigil_training.runs.run",
        "open_run": "vigil_training.runs.run",
        "outputs_to_table": "vigil_training.runs.predict",
        "predict_batches": "vigil_training.runs.predict",
        "predict_rows": "vigil_training.runs.predict",
        "predictions_table": "vigil_training.runs.prediction_table",
        "recalibrate": "vigil_training.runs.calibrate",
    },
)
