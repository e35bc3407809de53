"""Checkpoints in training: when they are saved, and the random state that a resumed run restores."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Checkpoint

from vigil_training.checkpoint.rng_state import set_rng_state
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.rank_group import raised_on_all_ranks
from vigil_training.distributed.session import Session
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer.callbacks.rank_sync import RankSync
from vigil_training.trainer.lightning_internals import ends_optimizer_step
from vigil_training.trainer.lightning_module import monitored_value


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
        if self._resumes and self._rng_state is not None:
            set_rng_state(self._rng_state)
        elif rank:  # of a new run, or one that the checkpoint's run did not have
            seeds = [self._recipe.seed, rank, *([trainer.global_step] if self._resumes else [])]
            pl.seed_everything(int(np.random.SeedSequence(seeds).generate_state(1)[0]), verbose=False)

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
