"""The end of training: after a number of steps, or when the monitor no longer improves."""

from typing import Any

import lightning.pytorch as pl

from vigil_training.recipe.specs import TrainingSpec
from vigil_training.trainer.lightning_internals import ends_optimizer_step
from vigil_training.trainer.lightning_module import monitored_value


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
