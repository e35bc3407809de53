"""Window of training that torch.profiler records."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.profiler import ProfilerActivity, profile, record_function

from vigil_training.recipe.specs import ProfileSpec
from vigil_training.trainer.lightning_internals import ends_optimizer_step

log = logging.getLogger("vigil.train")

TABLE_ROWS = 40
"""Operators in the table."""


class ProfilerWindow(pl.Callback):
    """Records optimizer steps, and writes ``rank-N.json`` (a Chrome trace) and ``rank-N.txt`` (operators by time).

    A run that is stopped within the window writes what it has recorded; one that is resumed within it records the rest.

    Args:
        spec: which steps.
        folder: where the files are written.
        rank: of this process; each rank writes its own.
    """

    def __init__(self, spec: ProfileSpec, folder: Path, rank: int) -> None:
        self._steps = range(spec.start + 1, spec.start + spec.steps + 1)
        self._trace = folder / f"rank-{rank}.json"
        self._profiler: profile | None = None
        self._sort_by = "self_cpu_time_total"
        self._open_step = ExitStack()
        self._recorded: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin an optimizer step of the window, and the recording before the first."""
        del batch, batch_idx
        step = trainer.global_step + 1
        if step not in self._steps or step in self._recorded:
            return
        if self._profiler is None:
            activities = [ProfilerActivity.CPU]
            if pl_module.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                self._sort_by = "self_device_time_total"
            self._profiler = profile(activities=activities)
            self._profiler.start()
        self._open_step.enter_context(record_function(f"optimizer step {step}"))
        self._recorded.append(step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End an optimizer step, and the recording after the last."""
        del pl_module, outputs, batch, batch_idx
        if self._profiler is not None and ends_optimizer_step(trainer):
            self._open_step.close()
            if trainer.global_step >= self._steps[-1]:
                self._write()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was recorded when training ends within the window."""
        del trainer, pl_module
        self._write()
        if not self._recorded:
            log.info("training.profile: nothing was recorded: this start made none of steps %s", self._describe(self._steps))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write what was recorded when the run stops within the window."""
        del trainer, pl_module, exception
        self._write()

    def _write(self) -> None:
        if self._profiler is None:
            return
        self._open_step.close()
        self._profiler.stop()
        self._trace.parent.mkdir(exist_ok=True)
        self._profiler.export_chrome_trace(str(self._trace))
        table = self._profiler.key_averages().table(sort_by=self._sort_by, row_limit=TABLE_ROWS)
        self._trace.with_suffix(".txt").write_text(table, encoding="utf-8")
        log.info("recorded steps %s: %s, and its operators in .txt", self._describe(self._recorded), self._trace)
        self._profiler = None

    @staticmethod
    def _describe(steps: range | list[int]) -> str:
        return f"{steps[0]} to {steps[-1]}"
