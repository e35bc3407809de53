"""What happens around each step: ranks agree on what they saw, checkpoints are saved, and a run that is asked to stop does."""

import logging
import time
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from vigil_data.errors import Failure
from vigil_training.checkpoint.rng_state import set_rng_state
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.rank_group import raised_on_all_ranks
from vigil_training.distributed.session import Session
from vigil_training.distributed.watchdog import StepTimes
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer.lightning_module import Quarantine, TrainingFailure, TrainingModule

log = logging.getLogger("vigil.train")

SHOWN_IDS = 20
"""Items that are named where a step was left out."""


def training_module(module: pl.LightningModule) -> TrainingModule:
    """``module``, which is one of ours."""
    if not isinstance(module, TrainingModule):
        raise TypeError(f"trains a TrainingModule, not a {type(module).__name__}")
    return module


class RankSync(pl.Callback):
    """Once in each optimizer step and validation batch all ranks tell each other what each has seen, so that all act alike.

    Args:
        session: the ranks.
        writer: of the checkpoints; what a background write met ends the run.
        quarantine: where refused items go.
        max_skipped: optimizer steps that may be left out.

    Attributes:
        asked: what asked the run to stop (a signal's name), on any rank.
        skipped: optimizer steps left out since the run began.
        metrics: numbers about the ranks, for the record.
    """

    def __init__(self, session: Session, writer: CheckpointWriter, quarantine: Quarantine, max_skipped: int) -> None:
        self._session = session
        self._ranks = session.ranks
        self._writer = writer
        self._quarantine = quarantine
        self._max_skipped = max_skipped
        self._times = StepTimes(session.world.size, session.world.is_main)
        self._ended = time.perf_counter()
        self._reading = 0.0
        self.asked: str | None = None
        self.skipped = 0
        self.metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure."""
        del trainer, pl_module
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time that this rank waited for its batch."""
        del trainer, pl_module, batch, batch_idx
        self._reading += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Exchange at the end of an optimizer step."""
        del outputs, batch, batch_idx
        self._ended = time.perf_counter()
        if not trainer.fit_loop._should_accumulate():
            self._exchange(training_module(pl_module), f"step {trainer.global_step}")
            self._count_skipped(training_module(pl_module), trainer.global_step)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        """Exchange, and stop at once if asked: the validation is done again after the checkpoint of the step before it."""
        _outputs, _batch, batch_idx, *_ = arguments
        self._exchange(training_module(pl_module), f"validation after step {trainer.global_step}, batch {batch_idx + 1}")
        if self.asked is not None and not trainer.sanity_checking:
            self._writer.wait()
            self._ranks.barrier()
            raise raised_on_all_ranks(
                Preempted(f"stopped by {self.asked} in the validation after step {trainer.global_step}; the same command goes on")
            )

    def _exchange(self, module: TrainingModule, what: str) -> None:
        session = self._session
        session.watchdog.beat(what)
        # A step takes equally long on all ranks, as they wait for each other: a rank's own part is reading and the forward pass.
        own_seconds, self._reading, module.forward_seconds = self._reading + module.forward_seconds, 0.0, 0.0
        own = [session.preemption.asked is not None, self._writer.error is not None, len(module.refused), own_seconds]
        asked, failed, refused, seconds = self._ranks.gather([float(value) for value in own]).T
        self.metrics = self._times.add(seconds)
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
        """Name the items of a step that was left out; too many of them end the run."""
        if not module.skipped:
            return
        self.skipped += 1
        bad = not bool(torch.isfinite(module.step_metrics["train/loss"]))
        seen = self._ranks.gather_objects((bad, module.step_ids))
        ids = [id_ for is_bad, own in seen if is_bad or not any(b for b, _ in seen) for id_ in own]
        shown = ", ".join(ids[:SHOWN_IDS]) + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "")
        line = f"step {step}: the gradient is not finite, so the step is left out; its items: {shown}"
        log.warning(line)
        if self.skipped > self._max_skipped:
            raise raised_on_all_ranks(
                TrainingFailure(
                    f"{self.skipped} steps had a gradient that is not finite, more than training.max_skipped "
                    f"{self._max_skipped}; "
                    f"the last was {line}; a lower optimizer.lr, training.clip or precision fp32 may help"
                )
            )


class Checkpoints(Checkpoint):
    """Saves checkpoints, and ends training after ``max_steps``, when validation no longer gets better, or when asked to.

    Args:
        recipe: says when to save and when to end.
        digest: of the recipe, see :func:`vigil_training.runs.run.digest`.
        writer: where checkpoints go.
        session: the ranks.
        pulse: knows whether the run is asked to stop.
        generators: states of the random generators to go on with, in a resumed run.
    """

    def __init__(
        self, recipe: Recipe, digest: str, writer: CheckpointWriter, session: Session, pulse: RankSync, *, generators: Any = None
    ) -> None:
        self._generators = generators
        self._recipe = recipe
        self._digest = digest
        self._writer = writer
        self._session = session
        self._pulse = pulse
        self._value: float | None = None
        self._resumes = False
        self.finished = False
        self.best_value: float | None = None
        self.stale = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside what Lightning saves."""
        return {"finished": self.finished, "best_value": self.best_value, "stale": self.stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up ``state_dict``."""
        self.finished, self.best_value, self.stale = (state_dict[name] for name in ("finished", "best_value", "stale"))
        self._resumes = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the learning rates and random numbers that would have come; a fresh run draws differently on each rank."""
        del pl_module
        rank = self._session.world.rank
        if self._resumes:
            for config in trainer.lr_scheduler_configs:
                rates = config.scheduler.get_last_lr()
                for group, rate in zip(config.scheduler.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
            set_rng_state(self._generators)
        elif rank:
            pl.seed_everything(int(np.random.SeedSequence([self._recipe.seed, rank]).generate_state(1)[0]), verbose=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due: every so many steps, before the last step of an epoch, and when asked to stop.

        The last step itself is saved with its validation, so a run that is stopped there makes one step again.
        """
        del pl_module, outputs, batch
        training, spec, step = self._recipe.training, self._recipe.checkpoint, trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        left = int(trainer.num_training_batches) - (batch_idx + 1)
        if training.max_steps is not None and step >= training.max_steps:
            trainer.should_stop = True
        elif left > 0:
            due = spec.every_steps is not None and step % spec.every_steps == 0
            kept = spec.keep_every is not None and step % spec.keep_every == 0
            if due or kept or left <= training.accumulate or self._pulse.asked is not None:
                self._save(trainer, None)
            if self._pulse.asked is not None:
                self._stop(step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the best so far, and stop after too many validations that were not better."""
        del pl_module
        training = self._recipe.training
        value = trainer.callback_metrics.get(training.monitor)
        self._value = None if value is None or torch.isnan(value) else float(value)
        if self._is_better(self._value):
            self.best_value, self.stale = self._value, 0
        else:
            self.stale += 1
        if training.patience is not None and self.stale >= training.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last checkpoint of the epoch; it says whether training has come to its end."""
        del pl_module
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self._save(trainer, self._value)
        self._value = None
        if self._pulse.asked is not None:
            self._stop(trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait until the last checkpoint is written."""
        del trainer, pl_module
        self._writer.wait()
        self._session.ranks.barrier()

    def _save(self, trainer: pl.Trainer, value: float | None) -> None:
        recipe = self._recipe
        about = CheckpointMetadata(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            finished=self.finished,
            recipe=self._digest,
            strategy=recipe.strategy.kind,
            monitor=recipe.training.monitor,
            value=value,
        )
        self._session.watchdog.beat(f"checkpoint of step {about.step}")
        trainer.save_checkpoint("", weights_only=False, storage_options=about)

    def _stop(self, step: int) -> None:
        """End the process; the checkpoint is whole before any rank leaves."""
        self._writer.wait()
        self._session.ranks.barrier()
        raise raised_on_all_ranks(
            Preempted(f"stopped by {self._pulse.asked} at step {step}; its checkpoint is written, and the same command goes on")
        )

    def _is_better(self, value: float | None) -> bool:
        if value is None or self.best_value is None:
            return value is not None
        return value > self.best_value if self._recipe.training.mode == "max" else value < self.best_value
