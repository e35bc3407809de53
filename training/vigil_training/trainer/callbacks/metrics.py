"""Metrics of training and validation, sent to the loggers."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from vigil_training.distributed.rank_group import RankGroup
from vigil_training.trainer.callbacks.rank_sync import RankSync
from vigil_training.trainer.lightning_internals import ends_optimizer_step
from vigil_training.trainer.lightning_module import training_module

log = logging.getLogger("vigil.train")

LOG_EVERY_N_STEPS = 10
"""Optimizer steps between two lines of training metrics."""


class MetricsCallback(pl.Callback):
    """Sends metrics to every logger: training metrics every few steps, validation metrics when validation ends.

    Args:
        ranks: the group that averages the loss.
        rank_sync: has metrics about the ranks.
        peak_flops: most FLOP/s of a rank's device, if that is known.
    """

    def __init__(self, ranks: RankGroup, rank_sync: RankSync, peak_flops: float | None = None) -> None:
        self._ranks = ranks
        self._rank_sync = rank_sync
        self._peak_flops = peak_flops
        self._start = self._waited = self._seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count operations and time from here, without validation and checkpoints at the end of the epoch before."""
        del trainer
        training_module(pl_module).flops, self._start = 0.0, time.perf_counter()
        self._waited = self._seconds = 0.0  # the loader counts from the start of the epoch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log loss, learning rate and gradient norm of an optimizer step, and the rate of operations since the last line."""
        del outputs, batch, batch_idx
        step = trainer.global_step
        if not ends_optimizer_step(trainer) or not (step == 1 or step % LOG_EVERY_N_STEPS == 0):
            return
        module = training_module(pl_module)
        metrics = {name: float(value) for name, value in module.step_metrics.items()}
        losses, flops, waiting = self._ranks.gather([metrics["train/loss"], module.flops, self._waiting(trainer)]).T
        # Each rank's part is scaled so that the mean over ranks is the loss over the known targets of all of them.
        metrics["train/loss"] = float(losses.mean())
        if module.flop_estimate is not None and step > 1:  # The first step also fills caches.
            rate = float(flops.mean()) / (time.perf_counter() - self._start)
            metrics["train/tflops"] = rate / 1e12
            if self._peak_flops is not None:
                metrics["train/mfu"] = rate / self._peak_flops
        module.flops, self._start = 0.0, time.perf_counter()
        self._log(trainer, metrics | self._rank_sync.metrics | {"ranks/data_wait": float(waiting.max())})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log how long this rank waited for data."""
        del pl_module
        loader: Any = trainer.train_dataloader
        if loader.seconds:
            waited = "epoch %d: waited for data in %.2g %% of the time; decoding processes: %d"
            log.info(waited, trainer.current_epoch, 100 * loader.waited_seconds / loader.seconds, loader.workers)

    def _waiting(self, trainer: pl.Trainer) -> float:
        """Return the share of the time since the last line that this rank waited for data."""
        loader: Any = trainer.train_dataloader
        waited, seconds = loader.waited_seconds - self._waited, loader.seconds - self._seconds
        self._waited, self._seconds = loader.waited_seconds, loader.seconds
        return waited / seconds if seconds > 0 else 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the validation metrics."""
        self._log(trainer, training_module(pl_module).validation_metrics)

    def _log(self, trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **metrics}, step=trainer.global_step)
