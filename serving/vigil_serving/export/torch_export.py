"""``torch.export`` archives: each encoder and the fusion as a program of their own, which torch alone loads and runs.

One program for all modalities is not to be had: without a segment an encoder's reshapes and spectrograms are not defined, and an
exported program has no branch around them. So the caller leaves out an absent encoder, as with the ONNX graphs.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from vigil_data.items import Modality
from vigil_data.loading.packing import Packed
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.export.modules import ENCODER_GRAPHS, ENCODER_INPUTS, FusionGraph, quiet


class InBfloat16(nn.Module):
    """An encoder whose products run in bfloat16, float32 in and out.

    Args:
        encoder: linear and convolution weights are stored in bfloat16 already.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:
        """Encode."""
        with torch.autocast("cpu", torch.bfloat16):
            tokens_SPD: Tensor = self.encoder(*inputs)
        return tokens_SPD.float()


def save_encoder(model: SafetyModel, modality: Modality, inputs: tuple[Tensor, ...], to: Path, *, bfloat16: bool = False) -> None:
    """Export one encoder; segments are free, and for text their tokens.

    Args:
        model: in evaluation mode; only what the encoder needs is saved.
        modality: which encoder.
        inputs: example inputs.
        to: the .pt2 file.
        bfloat16: store and multiply the weights of linear and convolution layers in bfloat16.
    """
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} if modality == "text" else {0: Dim.DYNAMIC}
    encoder: nn.Module = ENCODER_GRAPHS[modality](_only(model, modality))
    shapes: Any = tuple(free for _ in inputs)
    if bfloat16:
        encoder = copy.deepcopy(encoder)
        for module in encoder.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                module.to(torch.bfloat16)
        encoder, shapes = InBfloat16(encoder), (shapes,)
    _save(encoder, inputs, shapes, to)


def save_fusion(
    model: SafetyModel, rows: Tensor, tokens: Mapping[Modality, Tensor], items: Mapping[Modality, Tensor], to: Path
) -> None:
    """Export the fusion; items and the segments of each modality are free, zero included.

    Args:
        model: in evaluation mode.
        rows: int64 ``[N]``.
        tokens: of each modality ``[S_m, P_m, D]``.
        items: of each modality int64 ``[S_m]``.
        to: the .pt2 file.
    """
    arguments = (rows, *(tensor for m in model.modalities for tensor in (tokens[m], items[m])))
    first = {0: Dim.DYNAMIC}
    _save(FusionGraph(_only(model), model.modalities), arguments, (first, tuple(first for _ in arguments[1:])), to)


def load(path: Path) -> Callable[..., Any]:
    """Load what was saved, as a function of tensors."""
    with quiet():
        module: Callable[..., Any] = torch.export.load(str(path)).module()
    return module


def probabilities(
    encoders: Mapping[Modality, Callable[..., Any]],
    fusion: Callable[..., Any],
    packed: Packed,
    shapes: Mapping[Modality, tuple[int, int]],
) -> NDArray[np.floating]:
    """Score a batch with loaded programs.

    Args:
        encoders: of each modality.
        fusion: joins them.
        packed: the batch.
        shapes: of each modality, tokens of a segment and their width, for a batch without it.

    Returns:
        ``[N, L]``.
    """
    given = [torch.arange(len(packed.ids))]
    with torch.no_grad():
        for modality, encoder in encoders.items():
            segments = packed.segments.get(modality)
            if segments is None:
                given += [torch.zeros(0, *shapes[modality]), torch.zeros(0, dtype=torch.int64)]
            else:
                inputs = (torch.from_numpy(segments.inputs[name]) for name in ENCODER_INPUTS[modality])
                given += [encoder(*inputs), torch.from_numpy(segments.item)]
        return np.asarray(fusion(*given)[0].numpy())


def _only(model: SafetyModel, *modalities: Modality) -> SafetyModel:
    """The same model and weights without the encoders of other modalities, which an archive would store along."""
    part = copy.copy(model)
    kept = {
        name: nn.ModuleDict({m: model.get_submodule(name).get_submodule(m) for m in modalities})
        for name in ("encoders", "projections")
    }
    rest = {} if modalities else {name: model.get_submodule(name) for name in ("fusion", "heads")}
    object.__setattr__(part, "_modules", {**kept, **rest})
    return part


def _save(module: nn.Module, arguments: tuple[Tensor, ...], shapes: Any, to: Path) -> None:
    with quiet(), torch.no_grad():
        module.training = False  # what it wraps is in evaluation mode already
        program = torch.export.export(module, arguments, dynamic_shapes=shapes)
        torch.export.save(program, str(to))
