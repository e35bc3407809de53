"""Agreement between ranks: what each of them has met is exchanged in every optimizer step and validation batch."""

import logging
import math
import time
from typing import Any

import lightning.pytorch as pl
import torch

from vigil_data.errors import Failure
from vigil_training.checkpoint.writer import CheckpointWriter
from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.rank_group import raised_on_all_ranks
from vigil_training.distributed.session import Session
from vigil_training.distributed.watchdog import StepTimes
from vigil_training.trainer.errors import TrainingFailure
from vigil_training.trainer.lightning_internals import ends_optimizer_step
from vigil_training.trainer.lightning_module import TrainingModule, training_module
from vigil_training.trainer.quarantine import Quarantine

log = logging.getLogger("vigil.train")

MAX_SHOWN_IDS = 20
"""Items named in the message about a skipped step."""


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

    @property
    def quarantined(self) -> int:
        """Items that could not be decoded since the run began."""
        return len(self._quarantine)

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
