"""Modules to export, one for each encoder and one for the fusion, and what all formats share: example inputs and tensor names."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vigil_data.decode import Decoder
from vigil_data.items import Modality
from vigil_data.loading.batch import Segments, collate
from vigil_data.loading.packing import pack
from vigil_data.sources import resolve
from vigil_data.specs import Inputs
from vigil_modeling.guards.guard_model import ROW_TENSORS, GuardModel
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.bundle.manifest import TOKENIZER
from vigil_serving.bundle.metadata import PromptSettings
from vigil_serving.parity.cases import make_item

Network = TypeVar("Network", bound=MultimodalModel)
ENCODER_INPUTS: Mapping[Modality, tuple[str, ...]] = {
    "text": ("input_ids", "attention_mask"),
    "image": ("pixels",),
    "audio": ("waveform",),
}


class TextGraph(nn.Module):
    """Text encoder: passages to tokens ``[S, P, D]`` of the model's width."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode ``[S, T]`` token ids."""
        return self.model.encode("text", input_ids=input_ids, attention_mask=attention_mask)


class MarkedTextGraph(nn.Module):
    """Text encoder with a span head: passages to tokens ``[S, P, D]``, and log-odds of spans ``[S, T, K]``."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ``[S, T]`` token ids."""
        return self.model.encode_text(input_ids, attention_mask)


class ImageGraph(nn.Module):
    """Image encoder: images to tokens ``[S, P, D]`` of the model's width."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode uint8 ``[S, 3, H, W]``."""
        return self.model.encode("image", pixels=pixels)


class AudioGraph(nn.Module):
    """Audio encoder: audio windows to tokens ``[S, P, D]`` of the model's width."""

    def __init__(self, model: MultimodalModel) -> None:
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
    """Fusion: tokens of every modality to probabilities and evidence.

    Args:
        model: the trained model.
        modalities: the modalities, in the order of inputs and outputs.
    """

    def __init__(self, model: SafetyModel, modalities: tuple[Modality, ...]) -> None:
        super().__init__()
        self.model = model
        self.modalities = modalities

    def forward(self, rows: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Fuse.

        Args:
            rows: int64 ``[N]``, 0 to N - 1; its length is the number of items.
            inputs: for each modality in turn, tokens ``[S_m, P_m, D]`` and its :meth:`.SafetyModel.segment_inputs`.

        Returns:
            Probabilities ``[N, L]``, then the evidence ``[S_m, L]`` for each modality.
        """
        rest, tokens, segments = list(inputs), {}, {}
        for modality in self.modalities:
            names = self.model.segment_inputs(modality)
            tokens[modality], taken, rest = rest[0], rest[1 : 1 + len(names)], rest[1 + len(names) :]
            segments[modality] = dict(zip(names, taken, strict=True))
        prediction = self.model.fuse(tokens, segments, rows)
        return (torch.sigmoid(prediction.logits_NL), *(prediction.evidence[m] for m in self.modalities))


class LanguageModelGraph(nn.Module):
    """Language model of a guard: rows of prompts to the log-odds of their answers, and the evidence of the batch's segments.

    Args:
        guard: the trained guard.
    """

    def __init__(self, guard: GuardModel) -> None:
        super().__init__()
        self.guard = guard

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Answer.

        Args:
            inputs: :data:`.ROW_TENSORS` of the rows, ``segments`` ``[S]`` and, if the guard takes pictures or sound, soft tokens
                ``[K, D]``; see :meth:`.GuardModel.run_rows`.

        Returns:
            Logits ``[A]``, the evidence ``[S, L]`` and, with a span head, log-odds of spans ``[R, T, K]``.
        """
        rows = dict(zip(ROW_TENSORS, inputs, strict=False))
        segments_S, *soft = inputs[len(ROW_TENSORS) :]
        logits_A, evidence_SL, spans_RTK = self.guard.run_rows(rows, soft[0] if soft else None, segments_S)
        assert evidence_SL is not None
        return (logits_A, evidence_SL) if spans_RTK is None else (logits_A, evidence_SL, spans_RTK)


class AnswersGraph(nn.Module):
    """Log-odds of a guard's answers to probabilities, under the dependencies between labels."""

    def __init__(self, guard: GuardModel) -> None:
        super().__init__()
        self.structure = guard.structure

    def forward(self, logits_NL: Tensor) -> Tensor:
        """Return the probabilities ``[N, L]``."""
        return torch.sigmoid(self.structure.constrain(logits_NL))


class ExampleInputs(NamedTuple):
    """Inputs to trace graphs with: no two free axes are equally long, and none has length 0 or 1.

    Attributes:
        rows: int64 ``[N]``, 0 to N - 1.
        encoder_inputs: inputs of each modality's encoder, in their order.
        tokens: tokens of each modality, ``[S_m, P_m, D]``.
        segments: what the fusion takes with the tokens of each modality, in the order of :meth:`.SafetyModel.segment_inputs`.
    """

    rows: Tensor
    encoder_inputs: Mapping[Modality, tuple[Tensor, ...]]
    tokens: Mapping[Modality, Tensor]
    segments: Mapping[Modality, tuple[Tensor, ...]]

    def fusion_inputs(self) -> tuple[Tensor, ...]:
        """Return the inputs of :class:`FusionGraph`."""
        return (self.rows, *(tensor for m in self.tokens for tensor in (self.tokens[m], *self.segments[m])))


class GuardExample(NamedTuple):
    """Inputs to trace the graphs of a guard with: no two free axes are equally long, and none has length 0 or 1.

    Attributes:
        encoder_inputs: inputs of the encoders of pictures and sound, in their order.
        rows: inputs of :class:`LanguageModelGraph` by name, in their order.
        logits: float32 ``[N, L]``.
    """

    encoder_inputs: Mapping[Modality, tuple[Tensor, ...]]
    rows: Mapping[str, Tensor]
    logits: Tensor


def guard_example(guard: GuardModel, inputs: Inputs) -> GuardExample:
    """Make example inputs of a guard; see :func:`example_inputs`."""
    segments = {m: _example_segments(m, place, inputs, placed=True) for place, m in enumerate(guard.modalities) if m != "text"}
    n_rows, tokens, blocks, answers, n_segments, soft = 3, 17, 5, 7, 11, 13
    generator = torch.Generator().manual_seed(0)

    def numbers(below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=generator)

    rows = {
        "input_ids": numbers(2, n_rows, tokens),
        "soft": numbers(soft + 1 if guard.projections else 1, n_rows, tokens),
        "position": torch.arange(tokens).repeat(n_rows, 1),
        "block": numbers(blocks, n_rows, tokens),
        "sees": numbers(2, n_rows, blocks, blocks).bool() | torch.eye(blocks, dtype=torch.bool),
        "segment": numbers(n_segments + 1, n_rows, tokens),
        "answer_row": numbers(n_rows, answers),
        "answer_column": numbers(tokens, answers),
        "answer": torch.arange(answers),
        "segments": torch.arange(n_segments),
    }
    if guard.projections:
        rows["soft_tokens"] = torch.randn(soft, guard.width, generator=generator)
    return GuardExample(
        {m: tuple(batch.inputs[name] for name in ENCODER_INPUTS[m]) for m, batch in segments.items()},
        {name: rows[name] for name in (*ROW_TENSORS, *(name for name in rows if name not in ROW_TENSORS))},
        torch.randn(19, len(guard.labels), generator=generator),
    )


def _example_segments(modality: Modality, place: int, inputs: Inputs, *, placed: bool) -> Segments:
    """Return ``place + 3`` items' segments of a modality."""
    made = [make_item([modality], 6 * n + 1, inputs, placed=placed) for n in range(place + 3)]
    decoder = Decoder(inputs, ())
    return collate(pack([decoder.decode(item) for item in made])).segments[modality]


def example_inputs(network: SafetyModel, inputs: Inputs) -> ExampleInputs:
    """Make example inputs of a model.

    Args:
        network: the model, in evaluation mode.
        inputs: how its media are decoded.
    """
    encoder_inputs: dict[Modality, tuple[Tensor, ...]] = {}
    placements: dict[Modality, tuple[Tensor, ...]] = {}
    for place, modality in enumerate(network.modalities):
        batch = _example_segments(modality, place, inputs, placed=network.position is not None)
        encoder_inputs[modality] = tuple(batch.inputs[name] for name in ENCODER_INPUTS[modality])
        placements[modality] = tuple(batch.placement()[name] for name in network.segment_inputs(modality))
    with torch.no_grad():
        tokens = {m: network.encode(m, **dict(zip(ENCODER_INPUTS[m], given, strict=True))) for m, given in encoder_inputs.items()}
    return ExampleInputs(torch.arange(7), encoder_inputs, tokens, placements)


def input_names(network: SafetyModel, *, fused: bool) -> list[str]:
    """Return the names of the inputs, in order, of the fusion graph (``fused``) or of a graph that takes all modalities."""
    names = ["rows"]
    for modality in network.modalities:
        names += [f"{modality}_tokens"] if fused else ENCODER_INPUTS[modality]
        names += [f"{modality}_{name}" for name in network.segment_inputs(modality)]
    return names


def output_names(modalities: tuple[Modality, ...]) -> list[str]:
    """Return the names of the outputs of the fusion graph and of the graphs that take all modalities."""
    return ["probabilities", *(f"evidence_{m}" for m in modalities)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters; the parity gate catches what their warnings inside torch, onnxscript and transformers are about."""
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


def prompt_settings(network: MultimodalModel) -> PromptSettings | None:
    """Return how a guard asks, with the policy text of each label; ``None`` for another model."""
    if not isinstance(network, GuardModel):
        return None
    return PromptSettings(network.pieces, network.clauses[: len(network.labels)])


def inference_network(network: Network) -> Network:
    """Return the model in evaluation mode; a copy without what only training uses, if there is any.

    Auxiliary heads are removed, and every PEFT adapter (such as LoRA) is merged into the weights. A layer of the peft library is
    a module with ``merge`` and ``get_base_layer``.
    """
    if not network.has_auxiliary_heads and not any(_is_adapted(module) for module in network.modules()):
        return network.eval()
    merged = copy.deepcopy(network)
    merged.drop_auxiliary_heads()
    _merge_adapters(merged)
    return merged.eval()


def _is_adapted(module: nn.Module) -> bool:
    return callable(getattr(module, "merge", None)) and callable(getattr(module, "get_base_layer", None))


def _merge_adapters(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if _is_adapted(child):
            child.merge()  # type: ignore[operator]  # _is_adapted checked that it is callable
            setattr(module, name, child.get_base_layer())  # type: ignore[operator]
        else:
            _merge_adapters(child)


def tokenizer_file(inputs: Inputs) -> Path | None:
    """Return the tokenizer.json of the text encoder; ``None`` without text."""
    if inputs.text is None:
        return None
    source = resolve(inputs.text.tokenizer)
    return source / Path(TOKENIZER).name if source.is_dir() else source
