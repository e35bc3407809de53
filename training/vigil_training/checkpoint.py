"""Checkpoints: written whole or not at all, read without running code, and enough to go on bit by bit.

``last.ckpt`` is what a run resumes from: weights, optimizer, schedule, place in the epoch, random state. It is written at the
end of an optimizer step or of an epoch only, so a resumed run never finds itself in the middle of either. ``best.ckpt`` holds
the weights of the best validation and what was measured then.
"""

import os
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from vigil_data.errors import UserError
from vigil_training.specs import CheckpointSpec, TrainingSpec

PREFIX = "model."
"""Of the model's weights within the Lightning module's."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and then moves it there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """See :func:`write`."""
        del storage_options
        write(checkpoint, Path(path))


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that a reader finds the old one or the new one, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        torch.save(dict(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain containers are accepted.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: the checkpoint cannot be read ({reason}); remove it only if the run may begin again") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of Vigil: it has no state_dict")
    return checkpoint


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` with the weights of a checkpoint.

    Raises:
        UserError: if the checkpoint cannot be read or is of another model.
    """
    weights = {k.removeprefix(PREFIX): v for k, v in read(path)["state_dict"].items() if k.startswith(PREFIX)}
    own = model.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) + sorted(
        k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape
    )
    if wrong:
        raise UserError(f"{path}: weights of another model: {len(wrong)} tensors do not match, such as {', '.join(wrong[:3])}")
    model.load_state_dict(weights)


def random_state() -> dict[str, Any]:
    """The state of every global generator, as tensors and plain containers."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (libraries draw from the global one)
    return {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "rest": [int(position), int(has_gauss), float(gauss)],
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Undo all draws since :func:`random_state` gave ``state``."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, rest = state["numpy"]["keys"].numpy().astype(np.uint32), state["numpy"]["rest"]
    np.random.set_state(("MT19937", keys, *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


class Checkpoints(Checkpoint):
    """Keeps the last and the best, and ends training after ``max_steps`` or when validation no longer gets better.

    Args:
        last: file to resume from.
        best: file of the best weights.
        checkpoint: how often the last is saved.
        training: monitor, patience and the most steps.
    """

    def __init__(self, last: Path, best: Path, checkpoint: CheckpointSpec, training: TrainingSpec) -> None:
        self._last = last
        self._best = best
        self._every_steps = checkpoint.every_steps
        self._spec = training
        self._random: Mapping[str, Any] | None = None
        self.finished = False
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.stale = 0

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside what Lightning saves."""
        return {
            "finished": self.finished,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "stale": self.stale,
            "random": random_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up ``state_dict``; the random state is set when training starts, after all else that may draw."""
        self.finished = state_dict["finished"]
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
        self.stale = state_dict["stale"]
        self._random = state_dict["random"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the random numbers that the interrupted run would have drawn."""
        del trainer, pl_module
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the last checkpoint when it is due; an epoch's last step is saved with its validation."""
        del pl_module, outputs, batch
        if trainer.fit_loop._should_accumulate():
            return
        if self._spec.max_steps is not None and trainer.global_step >= self._spec.max_steps:
            trainer.should_stop = True
        elif (
            self._every_steps is not None
            and trainer.global_step % self._every_steps == 0
            and batch_idx + 1 < trainer.num_training_batches
        ):
            trainer.save_checkpoint(self._last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far, and stop after too many validations that were not."""
        value = trainer.callback_metrics.get(self._spec.monitor)
        number = None if value is None or torch.isnan(value) else float(value)
        if self._is_better(number):
            self.best_value, self.best_step, self.stale = number, trainer.global_step, 0
            self._save_best(pl_module)
        else:
            self.stale += 1
        if self._spec.patience is not None and self.stale >= self._spec.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last checkpoint of the epoch; it says whether training has come to its end."""
        del pl_module
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        trainer.save_checkpoint(self._last)

    def _is_better(self, value: float | None) -> bool:
        if self.best_step is None or self.best_value is None:
            return self.best_step is None or value is not None
        if value is None:
            return False
        return value > self.best_value if self._spec.mode == "max" else value < self.best_value

    def _save_best(self, module: pl.LightningModule) -> None:
        facts = {"global_step": self.best_step, "monitor": self._spec.monitor, "value": self.best_value}
        write({"state_dict": module.state_dict(), **facts}, self._best)
