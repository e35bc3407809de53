"""Tracking of a run: ``metrics.jsonl``, ``environment.json``, and Weights & Biases.

Example:
    >>> logger = open_wandb_logger(run, describe_environment(run.recipe, run.dataset()))
    >>> track_evaluation(run, run.evaluation("test"), results, data)
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.tracking.environment import describe_environment as describe_environment
    from vigil_training.tracking.evaluations.tracked_evaluation import track_evaluation as track_evaluation
    from vigil_training.tracking.local_metrics import JsonLinesLogger as JsonLinesLogger
    from vigil_training.tracking.metrics import METRICS as METRICS
    from vigil_training.tracking.metrics import is_exact as is_exact
    from vigil_training.tracking.wandb_logger import open_wandb_logger as open_wandb_logger

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "JsonLinesLogger": "vigil_training.tracking.local_metrics",
        "METRICS": "vigil_training.tracking.metrics",
        "describe_environment": "vigil_training.tracking.environment",
        "is_exact": "vigil_training.tracking.metrics",
        "open_wandb_logger": "vigil_training.tracking.wandb_logger",
        "track_evaluation": "vigil_training.tracking.evaluations.tracked_evaluation",
    },
)
