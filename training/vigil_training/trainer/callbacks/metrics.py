"""Metrics of training and validation, sent to the loggers; :data:`vigil_training.tracking.metrics.METRICS` lists them."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vigil_data.loading.batch import Batch
from vigil_data.specs import AudioInput
from vigil_training.distributed.rank_group import RankGroup
from vigil_training.tracking.machine_use import MachineMeter, MachineUse
from vigil_training.trainer.callbacks.rank_sync import RankSync
from vigil_training.trainer.lightning_internals import ends_optimizer_step
from vigil_training.trainer.lightning_module import TrainingModule, training_module

log = logging.getLogger("vigil.train")

LOG_EVERY_N_STEPS = 10
"""Optimizer steps between two lines of training metrics."""

COUNTED = ("items", "tokens", "token_slots", "images", "audio_seconds", "window_seconds")
"""What is counted of batches: ``slots`` and ``window`` include padding."""

Counts = dict[str, Tensor | float]


def count_batch(batch: Batch, window: float) -> Counts:
    """Count what a batch holds, without waiting for the device; tokens and windows of the token cache are not read.

    Args:
        batch: a batch of training.
        window: seconds of a window of audio.
    """
    counts: Counts = dict.fromkeys(COUNTED, 0.0)
    counts["items"] = float(len(batch))
    if (text := batch.segments.get("text")) is not None and (mask_ST := text.inputs.get("attention_mask")) is not None:
        counts |= {"tokens": mask_ST.sum(), "token_slots": float(mask_ST.numel())}
    if (image := batch.segments.get("image")) is not None:
        counts["images"] = float(len(image.item))
    if (audio := batch.segments.get("audio")) is not None:
        seconds = (audio.time[:, 1] - audio.time[:, 0]).sum()
        counts |= {"audio_seconds": seconds, "window_seconds": window * len(audio.item)}
    return counts


class MetricsCallback(pl.Callback):
    """Sends metrics to every logger: training metrics every few steps, validation metrics when validation ends.

    Numbers are exchanged between ranks once for each line, and nothing that is measured enters the training.

    Args:
        ranks: the group that averages the loss.
        rank_sync: has metrics about the ranks.
        peak_flops: most FLOP/s of a rank's device, if that is known.
        audio: the recipe's ``inputs.audio``.
        hours: hours of training that led to the checkpoint from which the run resumes.

    Attributes:
        data_wait: share of the time before the last line that the rank which waited longest waited for data.
    """

    def __init__(
        self,
        ranks: RankGroup,
        rank_sync: RankSync,
        peak_flops: float | None = None,
        audio: AudioInput | None = None,
        hours: float = 0.0,
    ) -> None:
        self._ranks = ranks
        self._rank_sync = rank_sync
        self._peak_flops = peak_flops
        self._window = 0.0 if audio is None else audio.window
        self._hours = hours
        self._began = self._start = self._waited = self._seconds = 0.0
        self._steps = 0
        self._since: Counts = dict.fromkeys(COUNTED, 0.0)
        self._of_step: Counts = dict.fromkeys(COUNTED, 0.0)
        self._meter: MachineMeter | None = None
        self.data_wait = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here: a run that resumes in the middle of an epoch does not start one."""
        del trainer
        self._meter = MachineMeter(pl_module.device)
        self._began = time.perf_counter()
        self._restart(training_module(pl_module))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here, without validation and checkpoints at the end of the epoch before."""
        del trainer
        self._restart(training_module(pl_module))
        self._waited = self._seconds = 0.0  # the loader counts from the start of the epoch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Count a batch, and let the losses of labels be measured in steps that are logged."""
        del batch_idx
        measures = _is_logged(trainer.global_step + 1)
        training_module(pl_module).measures = measures
        counts = count_batch(batch, self._window)
        self._since = {name: self._since[name] + count for name, count in counts.items()}
        if measures:
            self._of_step = {name: self._of_step[name] + count for name, count in counts.items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the metrics of an optimizer step."""
        del outputs, batch, batch_idx
        if not ends_optimizer_step(trainer):
            return
        self._steps += 1
        if _is_logged(trainer.global_step):
            module = training_module(pl_module)
            self._log(trainer, self._measure(trainer, module))
            self._restart(module)

    def _measure(self, trainer: pl.Trainer, module: TrainingModule) -> dict[str, float]:
        """Return the metrics of the step that has ended, and of the time since the last line."""
        assert self._meter is not None
        metrics = {name: float(value) for name, value in module.step_metrics.items()}
        for part, norm in module.part_norms.items():
            metrics[f"train/gradient_norm/{part}"] = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        seconds = time.perf_counter() - self._start
        # Losses of labels: the sums, and the numbers of targets; a module that measures none has none on any rank.
        labels = module.model.labels if module.label_losses is not None else ()
        sums = [] if module.label_losses is None else module.label_losses.double().flatten().tolist()
        own = [metrics["train/loss"], module.flops, self._waiting(trainer), *self._meter.read()]
        own += [float(counts[name]) for counts in (self._since, self._of_step) for name in COUNTED]
        gathered_RV = self._ranks.gather([*own, *sums])
        losses_R, flops_R, waiting_R = gathered_RV[:, :3].T
        use = gathered_RV[:, 3 : 3 + len(MachineUse._fields)].T
        totals = gathered_RV[:, 3 + len(MachineUse._fields) :].sum(axis=0)
        since, of_step = totals[: len(COUNTED)], totals[len(COUNTED) : 2 * len(COUNTED)]
        # Each rank's part is scaled so that the mean over ranks is the loss over the known targets of all of them.
        metrics["train/loss"] = float(losses_R.mean())
        metrics |= _label_losses(labels, totals[2 * len(COUNTED) :])
        metrics["train/skipped_steps"] = float(self._rank_sync.skipped + module.skipped)
        metrics["train/quarantined_items"] = float(self._rank_sync.quarantined)
        metrics |= _padding(dict(zip(COUNTED, of_step, strict=True)))
        if trainer.global_step > 1:  # The first step also fills caches.
            metrics |= _speed(dict(zip(COUNTED, since, strict=True)), seconds, self._steps, module.model.modalities)
            if module.flop_estimate is not None:
                rate = float(flops_R.mean()) / seconds
                metrics["train/tflops"] = rate / 1e12
                if self._peak_flops is not None:
                    metrics["train/mfu"] = rate / self._peak_flops
        self.data_wait = float(waiting_R.max())
        return metrics | self._rank_sync.metrics | {"ranks/data_wait": self.data_wait} | _use(MachineUse(*use))

    def _restart(self, module: TrainingModule) -> None:
        module.flops, module.label_losses = 0.0, None
        self._since, self._of_step = dict.fromkeys(COUNTED, 0.0), dict.fromkeys(COUNTED, 0.0)
        self._steps, self._start = 0, time.perf_counter()

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
        hours = self._hours + (time.perf_counter() - self._began) / 3600
        for logger in trainer.loggers:
            line = {"epoch": trainer.current_epoch, "hours": round(hours, 6), **metrics}
            logger.log_metrics(line, step=trainer.global_step)


def _is_logged(step: int) -> bool:
    return step == 1 or step % LOG_EVERY_N_STEPS == 0


def _label_losses(labels: tuple[str, ...], totals: NDArray[np.float64]) -> dict[str, float]:
    """Return the mean loss of each label that has a target; ``totals`` has their sums, then their numbers of targets."""
    sums, counts = totals[: len(labels)], totals[len(labels) :]
    return {f"train/loss/{label}": s / c for label, s, c in zip(labels, sums.tolist(), counts.tolist(), strict=True) if c}


def _padding(counts: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for name, used, slots in (("tokens", "tokens", "token_slots"), ("windows", "audio_seconds", "window_seconds")):
        if counts[slots]:
            found[f"train/padding/{name}"] = float(1 - counts[used] / counts[slots])
    return found


def _speed(counts: Mapping[str, float], seconds: float, steps: int, modalities: tuple[str, ...]) -> dict[str, float]:
    names = ["items", *(["tokens"] if counts["token_slots"] else [])]
    names += [name for name, modality in (("images", "image"), ("audio_seconds", "audio")) if modality in modalities]
    return {"speed/step_seconds": seconds / steps} | {f"speed/{name}": float(counts[name]) / seconds for name in names}


def _use(by_rank: MachineUse) -> dict[str, float]:
    """Return means of shares and maxima of memory, of what is known; each field has the values of all ranks."""
    found = {}
    for name, values_R in by_rank._asdict().items():
        known = np.asarray(values_R)[~np.isnan(values_R)]
        if len(known):
            found[f"system/{name}"] = float(known.max() if name.endswith("_gb") else known.mean())
    return found
