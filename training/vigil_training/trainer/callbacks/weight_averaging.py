"""Moving average of the weights (``training.ema``).

Lightning's ``WeightAveraging`` keeps a second copy of the whole module on every rank and puts it into one state dict; here only
trained weights are averaged, in the parts that each rank updates, and they are saved as fragments that any strategy can load.
"""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.checkpoint.reader import CheckpointReader
from vigil_training.checkpoint.shards import Fragment
from vigil_training.recipe.specs import MovingAverage
from vigil_training.trainer.lightning_internals import ends_optimizer_step


def update_decay(spec: MovingAverage, step: int) -> float | None:
    """Return the share of the average that is kept after an optimizer step; ``None`` if the step does not update it.

    Args:
        spec: the recipe's ``training.ema``.
        step: optimizer steps done.
    """
    number, rest = divmod(step - spec.start_step, spec.every_steps)
    if number < 1 or rest:
        return None
    return min(spec.decay, (1 + number) / (10 + number)) if spec.warmup else spec.decay


class WeightAveraging(pl.Callback):
    """Averages the trained weights, and the running statistics of norms, after optimizer steps (:class:`MovingAverage`).

    During a validation the model has the averages in place of its weights. Checkpoints hold both.

    Args:
        spec: the recipe's ``training.ema``.
        strategy: a :class:`vigil_training.distributed.strategies.checkpointed.CheckpointedStrategy`.
        model: the model in training.
    """

    def __init__(self, spec: MovingAverage, strategy: Any, model: MultimodalModel) -> None:
        self._spec = spec
        self._strategy = strategy
        self._model = model
        self._averages: list[Tensor] = []
        self._buffer_averages: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the initial weights, unless averaging begins later or in a resumed run."""
        del pl_module
        if trainer.global_step == self._spec.start_step and not self._averages:
            self._begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the averages."""
        del pl_module, outputs, batch, batch_idx
        if not ends_optimizer_step(trainer):
            return
        step = trainer.global_step
        if step == self._spec.start_step:
            self._begin()
        elif (decay := update_decay(self._spec, step)) is not None:
            update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            update([*self._averages, *self._buffer_averages], self._current(), 0)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the averages."""
        del trainer, pl_module
        self._swap()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue with the weights."""
        del trainer, pl_module
        self._swap()

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's fragments of the averages; none before averaging begins."""
        if self._averages:
            yield from self._strategy.trained_fragments(self._model, "average", self._averages)
            if self._strategy.is_global_zero:
                for name, average in zip(self._buffers, self._buffer_averages, strict=True):
                    yield Fragment("average", name, tuple(average.shape), 0, average.reshape(-1))

    def load_fragments(self, reader: CheckpointReader) -> None:
        """Load the averages of a checkpoint that has them."""
        if reader.names("average"):
            self._averages = self._strategy.read_trained_tensors(self._model, "average", reader)
            self._buffer_averages = [reader.read_full("average", n).to(b.device) for n, b in self._buffers.items()]

    @property
    def _buffers(self) -> dict[str, Tensor]:
        state = self._model.state_dict(keep_vars=True).items()
        return {name: t for name, t in state if not isinstance(t, nn.Parameter) and t.is_floating_point()}

    def _current(self) -> list[Tensor]:
        return [*self._strategy.trained_tensors(self._model), *self._buffers.values()]

    def _begin(self) -> None:
        self._averages = [tensor.clone() for tensor in self._strategy.trained_tensors(self._model)]
        self._buffer_averages = [buffer.clone() for buffer in self._buffers.values()]

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange weights and averages."""
        if self._averages:
            for average, current in zip([*self._averages, *self._buffer_averages], self._current(), strict=True):
                kept = current.clone()
                current.copy_(average)
                average.copy_(kept)
            self._strategy.trained_tensors_changed()
