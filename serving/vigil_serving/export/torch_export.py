"""``torch.export`` programs: one for each encoder and one for the fusion, which torch loads and runs without Vigil.

One program for all modalities is not possible: without a segment an encoder's reshapes and spectrograms are undefined, and an
exported program cannot branch around them. So the caller skips the encoder of an absent modality, as with the ONNX graphs.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from vigil_data.items import Modality
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.export.modules import ENCODER_GRAPHS, ExampleInputs, FusionGraph, quiet


class InBfloat16(nn.Module):
    """Encoder whose products run in bfloat16; inputs and outputs stay float32.

    Args:
        encoder: its linear and convolution weights are stored in bfloat16.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:
        """Encode."""
        with torch.autocast("cpu", torch.bfloat16):
            tokens_SPD: Tensor = self.encoder(*inputs)
        return tokens_SPD.float()


def save_encoder(network: SafetyModel, modality: Modality, example: ExampleInputs, to: Path, *, bfloat16: bool = False) -> None:
    """Export one encoder; the number of segments is dynamic, and for text the number of tokens.

    Args:
        network: the model, in evaluation mode; only the encoder's weights are saved.
        modality: modality of the encoder.
        example: inputs to trace with.
        to: the .pt2 file.
        bfloat16: store and multiply the weights of linear and convolution layers in bfloat16.
    """
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} if modality == "text" else {0: Dim.DYNAMIC}
    encoder: nn.Module = ENCODER_GRAPHS[modality](_only(network, modality))
    inputs = example.encoder_inputs[modality]
    shapes: Any = tuple(free for _ in inputs)
    if bfloat16:
        encoder = copy.deepcopy(encoder)
        for module in encoder.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                module.to(torch.bfloat16)
        encoder, shapes = InBfloat16(encoder), (shapes,)
    _save(encoder, inputs, shapes, to)


def save_fusion(network: SafetyModel, example: ExampleInputs, to: Path) -> None:
    """Export the fusion; the numbers of items and of each modality's segments are dynamic, and may be zero.

    Args:
        network: the model, in evaluation mode.
        example: inputs to trace with.
        to: the .pt2 file.
    """
    arguments = example.fusion_inputs()
    first = {0: Dim.DYNAMIC}
    _save(FusionGraph(_only(network), network.modalities), arguments, (first, tuple(first for _ in arguments[1:])), to)


def _only(model: SafetyModel, *modalities: Modality) -> SafetyModel:
    """Return the model, sharing its weights, without the encoders of other modalities, which a program would also store."""
    part = copy.copy(model)
    kept = {
        name: nn.ModuleDict({m: model.get_submodule(name).get_submodule(m) for m in modalities})
        for name in ("encoders", "projections")
    }
    rest = {} if modalities else {name: child for name, child in model.named_children() if name not in kept}
    object.__setattr__(part, "_modules", {**kept, **rest})
    return part


def _save(module: nn.Module, arguments: tuple[Tensor, ...], shapes: Any, to: Path) -> None:
    with quiet(), torch.no_grad():
        module.training = False  # the wrapped modules are in evaluation mode already
        program = torch.export.export(module, arguments, dynamic_shapes=shapes)
        if isinstance(module, InBfloat16):
            # A program cannot be saved with the regions of autocast that an encoder opens within this one, as ModernBERT's
            # rotary embeddings do; without decompositions this only turns them into plain operations.
            program = program.run_decompositions({})
        torch.export.save(program, str(to))
