"""The modules that are exported: one for each encoder and one for the fusion, with tensors in and tensors out.

What the two export formats share is here: example inputs whose sizes stand for all sizes, and the names of inputs and axes.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from vigil_data.decode import Decoder
from vigil_data.items import MODALITIES, Modality
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import DecodedItem, pack
from vigil_data.specs import Inputs
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.parity.cases import make_item

ENCODER_INPUTS: Mapping[Modality, tuple[str, ...]] = {
    "text": ("input_ids", "attention_mask"),
    "image": ("pixels",),
    "audio": ("waveform",),
}


class TextGraph(nn.Module):
    """Passages to tokens ``[S, P, D]`` of the model's width."""

    def __init__(self, model: SafetyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode ``[S, T]`` token ids."""
        return self.model.encode("text", input_ids=input_ids, attention_mask=attention_mask)


class ImageGraph(nn.Module):
    """Pictures to tokens ``[S, P, D]`` of the model's width."""

    def __init__(self, model: SafetyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode uint8 ``[S, 3, H, W]``."""
        return self.model.encode("image", pixels=pixels)


class AudioGraph(nn.Module):
    """Windows of sound to tokens ``[S, P, D]`` of the model's width."""

    def __init__(self, model: SafetyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveform: Tensor) -> Tensor:
        """Encode float32 ``[S, T]``."""
        return self.model.encode("audio", waveform=waveform)


ENCODER_GRAPHS: Mapping[Modality, type[TextGraph | ImageGraph | AudioGraph]] = {
    "text": TextGraph,
    "image": ImageGraph,
    "audio": AudioGraph,
}


class FusionGraph(nn.Module):
    """Tokens of every modality to probabilities and evidence.

    Args:
        model: the trained model.
        modalities: the modalities, in the order of inputs and outputs.
    """

    def __init__(self, model: SafetyModel, modalities: tuple[Modality, ...]) -> None:
        super().__init__()
        self.model = model
        self.modalities = modalities

    def forward(self, rows: Tensor, *tokens_and_items: Tensor) -> tuple[Tensor, ...]:
        """Fuse.

        Args:
            rows: int64 ``[N]``, 0 to N - 1: its length says how many items there are.
            tokens_and_items: of each modality tokens ``[S_m, P_m, D]`` and the items' rows ``[S_m]``, in turn.

        Returns:
            Probabilities ``[N, L]``, then of each modality the evidence ``[S_m, L]``.
        """
        tokens = dict(zip(self.modalities, tokens_and_items[0::2], strict=True))
        items = dict(zip(self.modalities, tokens_and_items[1::2], strict=True))
        prediction = self.model.fuse(tokens, items, rows)
        return (torch.sigmoid(prediction.logits_NL), *(prediction.evidence[m] for m in self.modalities))


def example_inputs(
    inputs: Inputs, modalities: tuple[Modality, ...]
) -> tuple[Tensor, dict[Modality, tuple[Tensor, ...]], dict[Modality, Tensor]]:
    """Example inputs to trace graphs with: no two free axes are equally long, and none has length 0 or 1.

    Args:
        inputs: how media are decoded.
        modalities: the model's modalities.

    Returns:
        ``rows`` int64 [N]; of each modality the encoder's inputs, in their order; of each modality int64 ``[S_m]``.
    """
    decoder, encoder_inputs, items = Decoder(inputs, ()), {}, {}
    for place, modality in enumerate(modalities):
        segments: list[DecodedItem] = [decoder.decode(make_item([modality], 6 * n + 1, inputs)) for n in range(place + 3)]
        batch = collate(pack(segments)).segments[modality]
        encoder_inputs[modality] = tuple(batch.inputs[name] for name in ENCODER_INPUTS[modality])
        items[modality] = batch.item
    return torch.arange(7), encoder_inputs, items


def input_names(modalities: tuple[Modality, ...], *, fused: bool) -> list[str]:
    """Names of the inputs in order: of the fusion graph (``fused``), or of a form that takes everything at once."""
    of = {m: ([f"{m}_tokens"] if fused else [*ENCODER_INPUTS[m]]) for m in modalities}
    return ["rows", *(name for m in MODALITIES if m in of for name in (*of[m], f"{m}_item"))]


def output_names(modalities: tuple[Modality, ...]) -> list[str]:
    """Names of the outputs of the fusion graph and of the forms that take everything at once."""
    return ["probabilities", *(f"evidence_{m}" for m in modalities)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters: what they warn of inside torch, onnxscript and transformers is answered by the parity gate."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "transformers")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
