"""Progress of training and validation."""

import time
from typing import Any

import lightning.pytorch as pl

from vigil_data.progress import Progress
from vigil_training.trainer.callbacks.metrics import MetricsCallback
from vigil_training.trainer.callbacks.rank_sync import RankSync
from vigil_training.trainer.lightning_internals import ends_optimizer_step

INTERVAL_SECONDS = 30.0
"""Time between two lines of a training whose output is not a terminal."""


class TrainingProgress(pl.Callback):
    """Reports optimizer steps with items/s, loss and the share of time spent waiting for data, and validation batches.

    Args:
        progress: where to report.
        total_steps: optimizer steps of the run.
        rank_sync: has items and loss of the last step, of all ranks.
        metrics: has the share of time in which data were waited for.
    """

    def __init__(self, progress: Progress, total_steps: int, rank_sync: RankSync, metrics: MetricsCallback) -> None:
        self._progress = progress
        self._total_steps = total_steps
        self._rank_sync = rank_sync
        self._metrics = metrics
        self._items = 0
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure items/s from here, without validation and checkpoints at the end of the epoch before."""
        del trainer, pl_module
        self._items, self._start = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report an optimizer step."""
        del pl_module, outputs, batch, batch_idx
        if ends_optimizer_step(trainer):
            self._items += self._rank_sync.items
            rate = self._items / max(time.monotonic() - self._start, 1e-9)
            waiting = f"waiting for data {self._metrics.data_wait:.0%}"
            detail = f"loss {self._rank_sync.loss:.4g}, {rate:.3g} items/s, {waiting}"
            self._progress("training", trainer.global_step, self._total_steps, detail, unit="steps")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        """Report a validation batch."""
        del pl_module
        _outputs, _batch, batch_idx, *_ = arguments
        total = int(sum(trainer.num_val_batches))
        self._progress(f"validation after step {trainer.global_step}", batch_idx + 1, total, unit="batches")
