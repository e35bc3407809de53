"""TorchScript export: the complete model in one file; each encoder is skipped when it has no segment."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vigil_data.items import Modality
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.export.modules import ENCODER_GRAPHS, ENCODER_INPUTS, ExampleInputs, FusionGraph, quiet


class OneInput(nn.Module):
    """Encoder with one input that returns no tokens without a segment; scripted, since a trace cannot branch."""

    def __init__(self, encoder: nn.Module, tokens: int, width: int) -> None:
        super().__init__()
        self.encoder, self.tokens, self.width = encoder, tokens, width

    def forward(self, first: Tensor) -> Tensor:
        """Encode ``[S, ...]``."""
        if first.size(0) == 0:
            return torch.zeros([0, self.tokens, self.width], device=first.device)
        tokens_SPD: Tensor = self.encoder(first)
        return tokens_SPD


class TwoInputs(nn.Module):
    """Encoder with two inputs that returns no tokens without a segment; see :class:`OneInput`."""

    def __init__(self, encoder: nn.Module, tokens: int, width: int) -> None:
        super().__init__()
        self.encoder, self.tokens, self.width = encoder, tokens, width

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Encode ``[S, ...]``."""
        if first.size(0) == 0:
            return torch.zeros([0, self.tokens, self.width], device=first.device)
        tokens_SPD: Tensor = self.encoder(first, second)
        return tokens_SPD


class FullModel(nn.Module):
    """Complete model: inputs of each encoder and rows of its segments, to probabilities and evidence."""

    def __init__(self, encoders: Mapping[Modality, nn.Module], fusion: FusionGraph) -> None:
        super().__init__()
        self.encoders, self.fusion = nn.ModuleDict({str(m): encoder for m, encoder in encoders.items()}), fusion

    def forward(self, rows: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Score; see :meth:`vigil_serving.export.modules.FusionGraph.forward` for the outputs.

        Args:
            rows: int64 ``[N]``.
            inputs: for each modality in turn, its encoder's inputs and its :meth:`.SafetyModel.segment_inputs`.
        """
        rest, fused = list(inputs), []
        for modality in self.fusion.modalities:
            taken = len(ENCODER_INPUTS[modality])
            placed = taken + len(self.fusion.model.segment_inputs(modality))
            fused += [self.encoders[modality](*rest[:taken]), *rest[taken:placed]]
            rest = rest[placed:]
        outputs: tuple[Tensor, ...] = self.fusion(rows, *fused)
        return outputs


def save_torchscript(network: SafetyModel, example: ExampleInputs, to: Path) -> None:
    """Trace the model and save it.

    Args:
        network: the model, in evaluation mode.
        example: inputs to trace with.
        to: the file.
    """
    modalities = network.modalities
    with quiet(), torch.no_grad():
        encoders = {m: _guarded(ENCODER_GRAPHS[m](network).eval(), example.encoder_inputs[m]) for m in modalities}
        inputs = (tensor for m in modalities for tensor in (*example.encoder_inputs[m], *example.segments[m]))
        model = FullModel(encoders, FusionGraph(network, modalities)).eval()
        torch.jit.trace(model, (example.rows, *inputs), check_trace=False).save(str(to))  # type: ignore[no-untyped-call]


def _guarded(encoder: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    _, tokens, width = encoder(*inputs).shape
    traced = torch.jit.trace(encoder, inputs, check_trace=False)  # type: ignore[no-untyped-call]
    return torch.jit.script((OneInput if len(inputs) == 1 else TwoInputs)(traced, tokens, width))
