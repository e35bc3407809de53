"""What every strategy has in common: its state is saved as named fragments, and found again under any other strategy."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from vigil_modeling.safety_model import SafetyModel
from vigil_training.checkpoint.shards import Fragment, InventoryEntry

if TYPE_CHECKING:
    from vigil_training.checkpoint.reader import CheckpointReader
    from vigil_training.checkpoint.writer import CheckpointWriter


def broadcast_batch_norm_statistics(module: nn.Module) -> None:
    """Give every rank the running statistics of rank 0's batch norms; DDP does so before each training step."""
    for norm in module.modules():
        if isinstance(norm, _NormBase):
            for buffer in norm.buffers(recurse=False):
                dist.broadcast(buffer, 0)


class CheckpointedStrategy:
    """Mixed into a Lightning strategy: ``trainer.save_checkpoint`` and ``ckpt_path`` go by :mod:`vigil_training.checkpoint`.

    Every rank saves what it holds. ``storage_options`` of ``trainer.save_checkpoint`` is the
    :class:`vigil_training.checkpoint.writer.CheckpointMetadata` of the checkpoint; its path is the writer's business.

    Attributes:
        writer: where checkpoints go; set before training.
    """

    writer: "CheckpointWriter"
    lightning_module: Any
    optimizers: list[Optimizer]

    @property
    def safety_model(self) -> SafetyModel:
        """The model, without what Lightning and DeepSpeed wrap around it."""
        model: SafetyModel = self.lightning_module.model
        return model

    def fragments(self, model: SafetyModel) -> Iterator[Fragment]:
        """What this rank holds of weights, buffers and optimizer state."""
        raise NotImplementedError

    def load_fragments(self, model: SafetyModel, reader: "CheckpointReader") -> None:
        """Fill weights, buffers and, in training, optimizer state."""
        raise NotImplementedError

    def inventory(self, model: SafetyModel) -> dict[str, InventoryEntry]:
        """What a checkpoint must hold."""
        raise NotImplementedError

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: weights are saved as fragments."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing: the state is saved as fragments."""
        del optimizer
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Save Lightning's ``checkpoint`` as plain data beside the fragments."""
        del filepath
        state = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        self.writer.save(storage_options, state, self.fragments(self.safety_model), self.inventory(self.safety_model))

    def load_checkpoint(self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None) -> dict[str, Any]:
        """Lightning's part of a checkpoint; the fragments are read by :meth:`load_model_state_dict`."""
        del weights_only
        from vigil_training.checkpoint.reader import CheckpointReader

        self._reader = CheckpointReader(Path(checkpoint_path))
        return {**self._reader.state, "state_dict": {}, "optimizer_states": []}

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Always, as optimizer state is filled with the weights."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Never: see :meth:`load_model_state_dict`."""
        return False

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fill weights, buffers and optimizer state."""
        del checkpoint, strict
        self.load_fragments(self.safety_model, self._reader)
        del self._reader
