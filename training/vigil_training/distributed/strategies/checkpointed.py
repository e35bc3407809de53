"""Base of all strategies: state is saved as named fragments that any other strategy can load."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.checkpoint.reader import CheckpointReader
from vigil_training.checkpoint.shards import Fragment, FragmentKind, inventory
from vigil_training.checkpoint.writer import CheckpointWriter


def broadcast_batch_norm_statistics(module: nn.Module) -> None:
    """Copy rank 0's running statistics of normalisation layers to every rank, as DDP does before each training step."""
    for layer in module.modules():
        if hasattr(layer, "running_mean"):
            for buffer in layer.buffers(recurse=False):
                dist.broadcast(buffer, 0)


class FurtherState(Protocol):
    """State of training, in addition to the strategy's own, that is saved as fragments."""

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's fragments."""

    def load_fragments(self, reader: CheckpointReader) -> None:
        """Load them, on all ranks together."""


class CheckpointedStrategy:
    """Mix-in for a Lightning strategy that saves and loads checkpoints of :mod:`vigil_training.checkpoint`.

    Every rank saves its own fragments. ``trainer.save_checkpoint`` takes the
    :class:`vigil_training.checkpoint.writer.CheckpointMetadata` as ``storage_options``; the writer chooses the path.

    Attributes:
        writer: writer of the run's checkpoints; set before training.
        further: further state to save and load; set before training.
    """

    writer: CheckpointWriter
    further: Sequence[FurtherState] = ()
    lightning_module: Any
    optimizers: list[Optimizer]

    @property
    def safety_model(self) -> MultimodalModel:
        """The model without the wrappers of Lightning and DeepSpeed."""
        model: MultimodalModel = self.lightning_module.model
        return model

    def fragments(self, model: MultimodalModel) -> Iterator[Fragment]:
        """Yield this rank's fragments of weights, buffers and optimizer state."""
        raise NotImplementedError

    def load_fragments(self, model: MultimodalModel, reader: CheckpointReader) -> None:
        """Load weights, buffers and, in training, optimizer state."""
        raise NotImplementedError

    def trained_tensors(self, model: MultimodalModel) -> list[Tensor]:
        """Return what the optimizer steps on this rank, in place: parameters, or parts of them."""
        raise NotImplementedError

    def trained_tensors_changed(self) -> None:
        """Let layers compute with new values of :meth:`trained_tensors`, on all ranks together."""

    def trained_fragments(self, model: MultimodalModel, kind: FragmentKind, tensors: Sequence[Tensor]) -> Iterator[Fragment]:
        """Yield this rank's fragments of ``tensors``, which are shaped like :meth:`trained_tensors`."""
        raise NotImplementedError

    def read_trained_tensors(self, model: MultimodalModel, kind: FragmentKind, reader: CheckpointReader) -> list[Tensor]:
        """Read what :meth:`trained_fragments` has saved under any strategy."""
        raise NotImplementedError

    def restart_step_count(self, model: MultimodalModel, names: Collection[str]) -> None:
        """Set AdamW's step count of parameters to 0; they are all the parameters of some of the optimizer's groups."""
        raise NotImplementedError

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return nothing: weights are saved as fragments."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return nothing: the state is saved as fragments."""
        del optimizer
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Save the fragments, and Lightning's ``checkpoint`` as plain data."""
        del filepath
        state = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        fragments = chain(self.fragments(self.safety_model), *(each.fragments() for each in self.further))
        self.writer.save(storage_options, state, fragments, inventory(self.safety_model))

    def load_checkpoint(self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None) -> dict[str, Any]:
        """Return Lightning's part of a checkpoint; :meth:`load_model_state_dict` reads the fragments."""
        del weights_only
        self._reader = CheckpointReader(Path(checkpoint_path))
        return {**self._reader.state, "state_dict": {}, "optimizer_states": []}

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """True, since the optimizer state is loaded with the weights."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """False: see :meth:`load_model_state_dict`."""
        return False

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights, buffers, optimizer state and further state."""
        del checkpoint, strict
        self.load_fragments(self.safety_model, self._reader)
        for each in self.further:
            each.load_fragments(self._reader)
        del self._reader
