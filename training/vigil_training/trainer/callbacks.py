"""Lightning callbacks of training: agreement between ranks, early stopping, checkpoints, metrics, progress.

They act around the optimizer step, which is :meth:`vigil_training.trainer.lightning_module.TrainingModule.train_step`.
"""

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from vigil_data.errors import Failure
from vigil_data.progress import Progress
from vigil_training.checkpoint.rng_state import set_rng_state
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.rank_group import RankGroup, raised_on_all_ranks
from vigil_training.distributed.session import Session
from vigil_training.distributed.watchdog import StepTimes
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import TrainingSpec
from vigil_training.trainer.errors import TrainingFailure
from vigil_training.trainer.lightning_internals import ends_optimizer_step
from vigil_training.trainer.lightning_module import TrainingModule
from vigil_training.trainer.quarantine import Quarantine

log = logging.getLogger("vigil.train")

MAX_SHOWN_IDS = 20
"""Items named in the message about a skipped step."""

LOG_EVERY_N_STEPS = 10
"""Optimizer steps between two lines of training metrics."""


class RankSync(pl.Callback):
    """Lets all ranks act alike: in each optimizer step and validation batch they exchange what each of them has met.

    Args:
        session: the ranks.
        writer: checkpoint writer; an error of its background thread ends the run.
        quarantine: receives undecodable items.
        max_skipped: optimizer steps that may be skipped in a run.

    Attributes:
        asked: name of the signal that asked any rank to stop.
        skipped: optimizer steps skipped since the run began.
        metrics: step times of the ranks, to be logged.
        items: items of all ranks in the last optimizer step.
        loss: loss of the last optimizer step over all ranks.
    """

    def __init__(self, session: Session, writer: CheckpointWriter, quarantine: Quarantine, max_skipped: int) -> None:
        self._session = session
        self._ranks = session.ranks
        self._writer = writer
        self._quarantine = quarantine
        self._max_skipped = max_skipped
        self._times = StepTimes(session.world.size, session.world.is_main)
        self._ended = time.perf_counter()
        self._loading_seconds = 0.0
        self.asked: str | None = None
        self.skipped = 0
        self.metrics: dict[str, float] = {}
        self.items = 0
        self.loss = math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped steps."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of skipped steps."""
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        del trainer, pl_module
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time that this rank waited for its batch."""
        del trainer, pl_module, batch, batch_idx
        self._loading_seconds += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Exchange at the end of an optimizer step."""
        del outputs, batch, batch_idx
        self._ended = time.perf_counter()
        if ends_optimizer_step(trainer):
            module = training_module(pl_module)
            self._exchange(module, f"step {trainer.global_step}")
            self._count_skipped(module, trainer.global_step)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        """Exchange, and stop at once if asked: the step before the validation is saved, and the validation is run again."""
        _outputs, _batch, batch_idx, *_ = arguments
        where = f"validation after step {trainer.global_step}"
        self._exchange(training_module(pl_module), f"{where}, batch {batch_idx + 1}")
        if self.asked is not None and not trainer.sanity_checking:
            self._writer.wait()
            self._ranks.barrier()
            raise raised_on_all_ranks(Preempted(f"stopped by {self.asked} in the {where}; the same command resumes it"))

    def _exchange(self, module: TrainingModule, what: str) -> None:
        session = self._session
        session.watchdog.beat(what)
        # A step takes equally long on all ranks, which wait for each other: only loading and forward are a rank's own time.
        own_seconds = self._loading_seconds + module.forward_seconds
        self._loading_seconds, module.forward_seconds = 0.0, 0.0
        own = [session.preemption.asked is not None, self._writer.error is not None, len(module.refused), own_seconds]
        own += [len(module.step_ids), float(module.step_metrics.get("train/loss", math.nan))]
        asked, failed, refused, seconds, items, losses = self._ranks.gather([float(value) for value in own]).T
        self.metrics = self._times.add(seconds)
        # Each rank's part is scaled so that the mean over ranks is the loss over the known targets of all of them.
        self.items, self.loss = int(items.sum()), float(losses.mean())
        if failed.any():
            reasons = self._ranks.gather_objects(None if self._writer.error is None else str(self._writer.error))
            raise raised_on_all_ranks(Failure("\n".join(dict.fromkeys(reason for reason in reasons if reason is not None))))
        if refused.any():
            for refusals in self._ranks.gather_objects(module.refused):
                self._quarantine.add(refusals)
            module.refused = []
        if asked.any() and self.asked is None:
            names = self._ranks.gather_objects(session.preemption.asked)
            self.asked = next(name for name in names if name is not None)

    def _count_skipped(self, module: TrainingModule, step: int) -> None:
        """Log the items of a skipped step, and raise when too many steps were skipped."""
        if not module.skipped:
            return
        self.skipped += 1
        bad = not bool(torch.isfinite(module.step_metrics["train/loss"]))
        by_rank = self._ranks.gather_objects((bad, module.step_ids))
        any_bad = any(is_bad for is_bad, _ in by_rank)
        ids = [id_ for is_bad, own in by_rank if is_bad or not any_bad for id_ in own]
        more = f" and {len(ids) - MAX_SHOWN_IDS} more" if len(ids) > MAX_SHOWN_IDS else ""
        line = (
            f"step {step}: the gradient is not finite, so the step is skipped; its items: {', '.join(ids[:MAX_SHOWN_IDS])}{more}"
        )
        log.warning(line)
        if self.skipped > self._max_skipped:
            raise raised_on_all_ranks(
                TrainingFailure(
                    f"{self.skipped} steps had a gradient that is not finite, more than training.max_skipped "
                    f"{self._max_skipped}; the last was {line}; "
                    "a lower optimizer.lr or training.clip, or training.precision fp32, may help"
                )
            )


class EarlyStopping(pl.Callback):
    """Ends training after ``training.max_steps``, or after ``training.patience`` validations without a better monitor.

    Args:
        spec: the recipe's ``training``.

    Attributes:
        best_value: best value of the monitor so far.
        stale: validations since then.
    """

    def __init__(self, spec: TrainingSpec) -> None:
        self._spec = spec
        self.best_value: float | None = None
        self.stale = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and how long ago it was reached."""
        return {"best_value": self.best_value, "stale": self.stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.best_value, self.stale = state_dict["best_value"], state_dict["stale"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the last optimizer step; Lightning still validates."""
        del pl_module, outputs, batch, batch_idx
        if self._spec.max_steps is not None and ends_optimizer_step(trainer) and trainer.global_step >= self._spec.max_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the monitor with its best value."""
        value = monitored_value(pl_module, self._spec.monitor)
        if self._is_better(value):
            self.best_value, self.stale = value, 0
        else:
            self.stale += 1
        if self._spec.patience is not None and self.stale >= self._spec.patience:
            trainer.should_stop = True

    def _is_better(self, value: float | None) -> bool:
        if value is None or self.best_value is None:
            return value is not None
        return value > self.best_value if self._spec.mode == "max" else value < self.best_value


class CheckpointCallback(Checkpoint):
    """Saves checkpoints when they are due and when the run is asked to stop, and restores random state in a resumed run.

    It comes behind :class:`RankSync` and :class:`EarlyStopping`, whose decisions it saves; Lightning puts subclasses of
    ``Checkpoint`` last.

    Args:
        recipe: recipe with the schedule of checkpoints.
        digest: digest of the recipe, see :func:`vigil_training.runs.run.recipe_digest`.
        writer: writes the checkpoints.
        session: the ranks.
        rank_sync: knows whether the run is asked to stop.
        rng_state: states of the random generators to restore, in a resumed run.

    Attributes:
        finished: whether training ends with the next checkpoint.
    """

    def __init__(
        self,
        recipe: Recipe,
        digest: str,
        writer: CheckpointWriter,
        session: Session,
        rank_sync: RankSync,
        *,
        rng_state: Any = None,
    ) -> None:
        self._recipe = recipe
        self._digest = digest
        self._writer = writer
        self._session = session
        self._rank_sync = rank_sync
        self._rng_state = rng_state
        self._resumes = False
        self.finished = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether training is finished."""
        return {"finished": self.finished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; Lightning calls this only in a resumed run."""
        self.finished = state_dict["finished"]
        self._resumes = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore learning rates and random state; a fresh run seeds each rank differently."""
        del pl_module
        rank = self._session.world.rank
        if self._resumes:
            for config in trainer.lr_scheduler_configs:
                rates = config.scheduler.get_last_lr()
                for group, rate in zip(config.scheduler.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
            set_rng_state(self._rng_state)
        elif rank:
            pl.seed_everything(int(np.random.SeedSequence([self._recipe.seed, rank]).generate_state(1)[0]), verbose=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every ``checkpoint.every_steps`` steps, before the last step of an epoch, and when asked to stop.

        The last step is saved with its validation; a run that is stopped between them repeats one step.
        """
        del pl_module, outputs, batch
        spec, step = self._recipe.checkpoint, trainer.global_step
        batches_left = int(trainer.num_training_batches) - (batch_idx + 1)
        if not ends_optimizer_step(trainer) or trainer.should_stop or batches_left <= 0:
            return
        due = spec.every_steps is not None and step % spec.every_steps == 0
        kept = spec.keep_every is not None and step % spec.keep_every == 0
        if due or kept or batches_left <= self._recipe.training.accumulate or self._rank_sync.asked is not None:
            self._save(trainer, None)
        if self._rank_sync.asked is not None:
            self._stop(step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of the epoch, with the monitor's value and whether training is finished."""
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self._save(trainer, monitored_value(pl_module, self._recipe.training.monitor))
        if self._rank_sync.asked is not None:
            self._stop(trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait until the last checkpoint is written."""
        del trainer, pl_module
        self._writer.wait()
        self._session.ranks.barrier()

    def _save(self, trainer: pl.Trainer, value: float | None) -> None:
        recipe = self._recipe
        metadata = CheckpointMetadata(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            finished=self.finished,
            recipe=self._digest,
            strategy=recipe.strategy.kind,
            monitor=recipe.training.monitor,
            value=value,
        )
        self._session.watchdog.beat(f"checkpoint of step {metadata.step}")
        trainer.save_checkpoint("", weights_only=False, storage_options=metadata)

    def _stop(self, step: int) -> None:
        """Raise :class:`Preempted` on all ranks, once the checkpoint is complete."""
        self._writer.wait()
        self._session.ranks.barrier()
        raise raised_on_all_ranks(
            Preempted(
                f"stopped by {self._rank_sync.asked} at step {step}; its checkpoint is written, and the same command resumes it"
            )
        )


class MetricsCallback(pl.Callback):
    """Sends metrics to every logger: training metrics every few steps, validation metrics when validation ends.

    Args:
        ranks: the group that averages the loss.
        rank_sync: has metrics about the ranks.
    """

    def __init__(self, ranks: RankGroup, rank_sync: RankSync) -> None:
        self._ranks = ranks
        self._rank_sync = rank_sync

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log loss, learning rate and gradient norm of an optimizer step."""
        del outputs, batch, batch_idx
        step = trainer.global_step
        if not ends_optimizer_step(trainer) or not (step == 1 or step % LOG_EVERY_N_STEPS == 0):
            return
        metrics = {name: float(value) for name, value in training_module(pl_module).step_metrics.items()}
        # Each rank's part is scaled so that the mean over ranks is the loss over the known targets of all of them.
        metrics["train/loss"] = float(self._ranks.gather([metrics["train/loss"]]).mean())
        self._log(trainer, metrics | self._rank_sync.metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the validation metrics."""
        self._log(trainer, training_module(pl_module).validation_metrics)

    def _log(self, trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **metrics}, step=trainer.global_step)


class TrainingProgress(pl.Callback):
    """Reports optimizer steps with items/s and loss, and validation batches.

    Args:
        progress: where to report.
        total_steps: optimizer steps of the run.
        rank_sync: has items and loss of the last step, of all ranks.
    """

    def __init__(self, progress: Progress, total_steps: int, rank_sync: RankSync) -> None:
        self._progress = progress
        self._total_steps = total_steps
        self._rank_sync = rank_sync
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
            detail = f"{rate:.3g} items/s, loss {self._rank_sync.loss:.4g}"
            self._progress("training", trainer.global_step, self._total_steps, detail, unit="steps")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        """Report a validation batch."""
        del pl_module
        _outputs, _batch, batch_idx, *_ = arguments
        total = int(sum(trainer.num_val_batches))
        self._progress(f"validation after step {trainer.global_step}", batch_idx + 1, total, unit="batches")


def training_module(module: pl.LightningModule) -> TrainingModule:
    """Return ``module``, which Lightning types as any module, as the :class:`TrainingModule` that it is."""
    if not isinstance(module, TrainingModule):
        raise TypeError(f"expected a TrainingModule, not a {type(module).__name__}")
    return module


def monitored_value(module: pl.LightningModule, monitor: str) -> float | None:
    """Return the monitor's value in the last validation; ``None`` if it has none there."""
    value = training_module(module).validation_metrics.get(monitor)
    return None if value is None or math.isnan(value) else value
