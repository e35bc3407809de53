"""TorchScript: the whole model in one file, tracing the encoders and the fusion, each encoder skipped when it has no segment."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vigil_data.items import Modality
from vigil_serving.export.modules import ENCODER_GRAPHS, ENCODER_INPUTS, FusionGraph, quiet


class OneInput(nn.Module):
    """An encoder of one tensor, or no tokens without a segment; compiled, because a trace cannot branch."""

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
    """An encoder of two tensors, or no tokens without a segment; see :class:`OneInput`."""

    def __init__(self, encoder: nn.Module, tokens: int, width: int) -> None:
        super().__init__()
        self.encoder, self.tokens, self.width = encoder, tokens, width

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Encode ``[S, ...]``."""
        if first.size(0) == 0:
            return torch.zeros([0, self.tokens, self.width], device=first.device)
        tokens_SPD: Tensor = self.encoder(first, second)
        return tokens_SPD


class Whole(nn.Module):
    """Everything at once: the inputs of each encoder and the rows of its segments, to probabilities and evidence."""

    def __init__(self, encoders: Mapping[Modality, nn.Module], fusion: FusionGraph) -> None:
        super().__init__()
        self.encoders, self.fusion = nn.ModuleDict({str(m): encoder for m, encoder in encoders.items()}), fusion

    def forward(self, rows: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Score; see :meth:`vigil_serving.export.modules.FusionGraph.forward` for what comes out.

        Args:
            rows: int64 ``[N]``.
            inputs: of each modality its encoder's inputs and int64 ``[S_m]``, in turn.
        """
        rest, fused = list(inputs), []
        for modality in self.fusion.modalities:
            taken = len(ENCODER_INPUTS[modality])
            fused += [self.encoders[modality](*rest[:taken]), rest[taken]]
            rest = rest[taken + 1 :]
        outputs: tuple[Tensor, ...] = self.fusion(rows, *fused)
        return outputs


def save(
    model: Any,
    modalities: tuple[Modality, ...],
    rows: Tensor,
    encoder_inputs: Mapping[Modality, tuple[Tensor, ...]],
    items: Mapping[Modality, Tensor],
    *,
    to: Path,
) -> None:
    """Trace the model and write it.

    Args:
        model: the :class:`~vigil_modeling.safety_model.SafetyModel`, in evaluation mode.
        modalities: its modalities, in order.
        rows: int64 ``[N]``.
        encoder_inputs: example inputs of each encoder.
        items: of each modality int64 ``[S_m]``.
        to: the file.
    """
    with quiet(), torch.no_grad():
        encoders = {m: _guarded(ENCODER_GRAPHS[m](model).eval(), encoder_inputs[m]) for m in modalities}
        inputs = (tensor for m in modalities for tensor in (*encoder_inputs[m], items[m]))
        whole = Whole(encoders, FusionGraph(model, modalities)).eval()
        torch.jit.trace(whole, (rows, *inputs), check_trace=False).save(str(to))  # type: ignore[no-untyped-call]


def load(path: Path) -> Any:
    """Load what :func:`save` wrote, on the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]


def _guarded(encoder: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    _, tokens, width = encoder(*inputs).shape
    traced = torch.jit.trace(encoder, inputs, check_trace=False)  # type: ignore[no-untyped-call]
    return torch.jit.script((OneInput if len(inputs) == 1 else TwoInputs)(traced, tokens, width))
