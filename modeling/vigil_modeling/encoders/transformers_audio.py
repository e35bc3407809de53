"""Pretrained audio encoders of the transformers library, with their feature extraction in the graph."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.specs import AudioInput
from vigil_modeling.encoders.audio_features import RATE, KaldiFbank, Standardise, WhisperLogMel, frames_of
from vigil_modeling.encoders.base import Encoder
from vigil_modeling.encoders.transformers_common import build_config, build_model, checkpoint_activations, read_json, stack_layers
from vigil_modeling.specs import Random, TransformersAudio

WHERE = "model.encoders.audio"


class TransformersAudioEncoder(Encoder):
    """Encoder of one token per window: the mean of the last hidden states over the frames that the window fills.

    Args:
        features: module from waveform ``[S, T]`` to the model's input.
        model: module that returns ``last_hidden_state`` ``[S, F, D]``.
        config: its configuration.
        frames: number of leading states that belong to the window; the rest is padding.
        samples: length of a window.
    """

    tokens = 1

    def __init__(self, features: nn.Module, model: nn.Module, config: Any, frames: int, samples: int) -> None:
        super().__init__()
        self.features = features
        self.model = model
        self.frames = frames
        self.samples = samples
        self.depth: int = config.num_hidden_layers
        self.width = config.hidden_size

    def forward(self, waveform: Tensor) -> Tensor:
        """Encode windows.

        Args:
            waveform: float32 ``[S, T]`` at 16 kHz, mono, about -1 to 1.

        Returns:
            ``[S, 1, D]``
        """
        hidden_SFD: Tensor = self.model(self.features(waveform)).last_hidden_state
        return hidden_SFD[:, : self.frames].mean(1, keepdim=True)

    def blank(self) -> dict[str, Tensor]:
        """Return a window of silence."""
        return {"waveform": torch.zeros(1, self.samples, device=next(self.parameters()).device)}

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of convolutions and embeddings, then of each block."""
        return stack_layers(self.model, self.depth)

    def checkpoint_activations(self) -> None:
        """See :class:`Encoder`."""
        checkpoint_activations(self.model, WHERE)


class Family(NamedTuple):
    """Inputs of one family of architectures.

    Attributes:
        features: function from the configuration and the stored ``preprocessor_config.json`` to the feature extractor.
        frames: function from the configuration and a number of samples to the number of states they fill.
        encoder: function from the loaded model to its encoder.
        limit: function from the configuration to the maximum number of samples of a window, or ``None``.
    """

    features: Callable[[Any, Mapping[str, Any]], nn.Module]
    frames: Callable[[Any, int], int]
    encoder: Callable[[Any], nn.Module]
    limit: Callable[[Any], int | None]


def _complete_model(model: nn.Module) -> nn.Module:
    return model


def _convolutional_frames(config: Any, samples: int) -> int:
    return frames_of(samples, tuple(config.conv_kernel), tuple(config.conv_stride))


WAV2VEC2 = Family(
    features=lambda _, stored: Standardise(bool(stored.get("do_normalize", True))),
    frames=_convolutional_frames,
    encoder=_complete_model,
    limit=lambda _: None,
)
AST = Family(
    features=lambda config, stored: KaldiFbank(
        config.num_mel_bins,
        config.max_length,
        stored.get("mean", -4.2677393) if stored.get("do_normalize", True) else None,
        stored.get("std", 4.5689974),
    ),
    frames=lambda *_: 2,  # the class and the distillation token, whose mean is the paper's clip embedding
    encoder=_complete_model,
    limit=lambda config: config.max_length * 160 + 240,
)
WHISPER = Family(
    features=lambda config, _: WhisperLogMel(config.num_mel_bins, 2 * config.max_source_positions),
    frames=lambda _, samples: math.ceil(samples / 320),
    encoder=lambda model: model.encoder,  # the decoder would write transcripts
    limit=lambda config: config.max_source_positions * 320,
)
FAMILIES: Mapping[str, Family] = {
    "audio-spectrogram-transformer": AST,
    "hubert": WAV2VEC2,
    "wav2vec2": WAV2VEC2,
    "wavlm": WAV2VEC2,
    "whisper": WHISPER,
}


def build_transformers_audio(spec: TransformersAudio, inputs: AudioInput, load_weights: bool) -> TransformersAudioEncoder:
    """Build the encoder of ``spec``.

    Raises:
        UserError: if the architecture or its weights are not available, or it does not take audio of this rate or length.
    """
    config = build_config(spec.weights, spec.config, WHERE)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(f"{WHERE}: {config.model_type} is not one of the audio encoders {', '.join(FAMILIES)}")
    stored = {} if isinstance(spec.weights, Random) else read_json(spec.weights, "preprocessor_config.json")
    problems = []
    if inputs.rate != RATE:
        problems.append(f"inputs.audio.rate is {inputs.rate}, but {config.model_type} takes {RATE} samples a second")
    limit, frames = family.limit(config), family.frames(config, inputs.samples)
    if limit is not None and inputs.samples > limit:
        problems.append(f"inputs.audio.window is {inputs.window} s, but {config.model_type} takes {limit / RATE:g} s at most")
    if frames < 1 or inputs.samples < 400:
        problems.append(f"inputs.audio.window is {inputs.window} s, which is shorter than one frame of {config.model_type}")
    if problems:
        raise UserError(*problems)
    model = family.encoder(build_model(spec.weights, config, load_weights, WHERE))
    if hasattr(model, "masked_spec_embed") and not config.apply_spec_augment:
        del model.masked_spec_embed  # only SpecAugment uses it; a weight without a gradient stalls distributed training
    return TransformersAudioEncoder(family.features(config, stored), model, config, frames, inputs.samples)
