"""Validation metrics for whoever started the training, such as a sweep, which may end it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl

from vigil_training.distributed.rank_group import RankGroup
from vigil_training.trainer.lightning_module import training_module

log = logging.getLogger("vigil.train")

Report = Callable[[int, Mapping[str, float]], bool]
"""Called on rank 0 with the number of finished epochs and the validation metrics; true ends training."""


class ValidationReport(pl.Callback):
    """Reports each validation, and ends training after it when the receiver asks for that; the run finishes as usual.

    Args:
        report: receives the metrics.
        ranks: the ranks, which end together.
    """

    def __init__(self, report: Report, ranks: RankGroup) -> None:
        self._report = report
        self._ranks = ranks

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the metrics."""
        metrics: dict[str, Any] = dict(training_module(pl_module).validation_metrics)
        epochs = trainer.current_epoch + 1
        if self._ranks.run_on_rank_0(lambda: self._report(epochs, metrics)):
            log.info("pruned after %d epochs", epochs)
            trainer.should_stop = True
            for logger in trainer.loggers:
                logger.log_metrics({"sweep/pruned": 1.0}, step=trainer.global_step)
