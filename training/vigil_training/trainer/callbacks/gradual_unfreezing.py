"""Gradual unfreezing of encoders (``model.encoders.X.unfreeze``).

Which layers are trained is a function of the number of optimizer steps, so nothing is saved. All weights that are trained at
some time require gradients, and are in the optimizer, from the beginning: DDP and ZeRO cannot add weights later. Until its
release a weight's gradient is zero and so is its learning rate, which leaves it and AdamW's moments unchanged.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.specs import AnyModelSpec, Unfreezing

log = logging.getLogger("vigil.train")


def release_steps(model: MultimodalModel, spec: AnyModelSpec, epoch_ends: Sequence[int]) -> dict[str, int]:
    """Return the optimizer steps before each parameter is trained, by name; those trained from the beginning are left out.

    Args:
        model: the model, with frozen weights marked.
        spec: the recipe's ``model``.
        epoch_ends: optimizer steps of the run at the end of each epoch. A layer that would be released at the end of the run or
            later has the last of them, and is never trained.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    releases: dict[str, int] = {}
    for modality in model.modalities:
        encoder_spec = getattr(spec.encoders, modality)
        if encoder_spec.unfreeze is None:
            continue
        layers = [[p for p in layer if p.requires_grad] for layer in model.encoder(modality).layers()]
        steps = [_release(encoder_spec.unfreeze, depth, epoch_ends) for depth in reversed(range(len(layers)))]
        for layer, step in zip(layers, steps, strict=True):
            releases |= {names[id(parameter)]: step for parameter in layer if step}
        described = [
            f"layer {number} {'is never trained' if step == epoch_ends[-1] else f'from step {step}'}"
            for number, (layer, step) in enumerate(zip(layers, steps, strict=True), start=1)
            if layer
        ]
        log.info("gradual unfreezing of %s, from the top: %s", modality, ", ".join(reversed(described)))
    return releases


def _release(spec: Unfreezing, depth: int, epoch_ends: Sequence[int]) -> int:
    """Return the optimizer steps before the layer at ``depth`` below the top is trained."""
    time = spec.start + spec.every * (depth // spec.layers)
    steps = time if spec.unit == "steps" else [0, *epoch_ends][min(time, len(epoch_ends))]
    return min(steps, epoch_ends[-1])


class GradualUnfreezing(pl.Callback):
    """Holds layers until their release; an encoder whose layers are all held is in evaluation mode.

    Args:
        releases: see :func:`release_steps`.
        strategy: a :class:`vigil_training.distributed.strategies.checkpointed.CheckpointedStrategy`.
        model: the model in training.
    """

    def __init__(self, releases: Mapping[str, int], strategy: Any, model: MultimodalModel) -> None:
        self._releases = releases
        self._strategy = strategy
        self._model = model
        self._step = -1
        for name, release in releases.items():
            model.get_parameter(name).register_hook(partial(self._hold, release))  # type: ignore[no-untyped-call]

    def _hold(self, release: int, gradient: Tensor) -> Tensor:
        """Return a gradient of zero before the release; it reaches DDP's and ZeRO's own hooks in place of the gradient."""
        return gradient if self._step >= release else torch.zeros_like(gradient)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Release layers before the first batch of an optimizer step."""
        del pl_module, batch, batch_idx
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        released = [name for name, release in self._releases.items() if release == self._step]
        if released:
            # Steps with a gradient of zero count in AdamW's bias correction, and would make the first updates too large.
            self._strategy.restart_step_count(self._model, released)
        self._lock()

    def _lock(self) -> None:
        """Mark the layers that are held, and set their modes."""
        held = {id(self._model.get_parameter(n)) for n, release in self._releases.items() if release > self._step}
        for modality in self._model.modalities:
            encoder = self._model.encoder(modality)
            layers = enumerate(encoder.layers(), start=1)
            locked = max((number for number, layer in layers if any(id(p) in held for p in layer)), default=0)
            if locked != encoder.locked:
                encoder.locked = locked
                self._model.train()
