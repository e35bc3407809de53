"""Pretrained audio encoders of the transformers library, with their feature extraction in the graph."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.specs import AudioInput
from vigil_modeling.encoders.audio.features import (
    ClapLogMel,
    KaldiFbank,
    Standardise,
    WhisperLogMel,
    frames_of,
)
from vigil_modeling.encoders.base import Encoder
from vigil_modeling.encoders.transformers_common import build_config, build_model, checkpoint_activations, read_json, stack_layers
from vigil_modeling.input_checks import CLAP_RATE, MIN_WINDOW_SECONDS, SPEECH_RATE
from vigil_modeling.specs import Random, TransformersAudio

WHERE = "model.encoders.audio"


class TransformersAudioEncoder(Encoder):
    """Encoder of one token per window: the mean of the last hidden states over the frames that the window fills.

    Args:
        family: how the model is used.
        features: module from waveform ``[S, T]`` to the model's input.
        model: module whose output ``family.states`` reads.
        config: its configuration.
        samples: length of a window.
    """

    tokens = 1

    def __init__(self, family: "Family", features: nn.Module, model: nn.Module, config: Any, samples: int) -> None:
        super().__init__()
        self.family = family
        self.features = features
        self.model = model
        self.frames = family.frames(config, samples)
        self.samples = samples
        self.depth = family.depth(config)
        self.width = config.hidden_size

    def forward(self, waveform: Tensor) -> Tensor:
        """Encode windows.

        Args:
            waveform: float32 ``[S, T]`` at the family's sample rate, mono, about -1 to 1.

        Returns:
            ``[S, 1, D]``
        """
        hidden_SFD = self.family.states(self.model(self.features(waveform)))
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


def _complete_model(model: nn.Module) -> nn.Module:
    return model


def _last_states(output: Any) -> Tensor:
    states_SFD: Tensor = output.last_hidden_state
    return states_SFD


class Family(NamedTuple):
    """Inputs and outputs of one family of architectures.

    Attributes:
        features: function from the configuration and the stored ``preprocessor_config.json`` to the feature extractor.
        frames: function from the configuration and a number of samples to the number of leading states that belong to the
            window; the rest is padding.
        limit: function from the configuration to the maximum number of samples of a window, or ``None``.
        encoder: function from the loaded model to its encoder.
        config: function from the loaded model's configuration to its encoder's.
        states: function from the encoder's output to ``[S, F, D]``.
        depth: function from the configuration to the number of blocks, or of stages of blocks.
        rate: samples a second.
    """

    features: Callable[[Any, Mapping[str, Any]], nn.Module]
    frames: Callable[[Any, int], int]
    limit: Callable[[Any], int | None]
    encoder: Callable[[Any], nn.Module] = _complete_model
    config: Callable[[Any], Any] = lambda config: config
    states: Callable[[Any], Tensor] = _last_states
    depth: Callable[[Any], int] = lambda config: config.num_hidden_layers
    rate: int = SPEECH_RATE


def _convolutional_frames(config: Any, samples: int) -> int:
    return frames_of(samples, tuple(config.conv_kernel), tuple(config.conv_stride))


def _clap_samples(config: Any) -> int:
    """Return the samples of CLAP's input: ten seconds, or less if the square picture that it makes of them is smaller."""
    frames: int = config.spec_size**2 // config.num_mel_bins
    return min(10 * CLAP_RATE, 480 * (frames - 1))


WAV2VEC2 = Family(
    features=lambda _, stored: Standardise(bool(stored.get("do_normalize", True))),
    frames=_convolutional_frames,
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
    limit=lambda config: config.max_length * 160 + 240,
)
WHISPER = Family(
    features=lambda config, _: WhisperLogMel(config.num_mel_bins, 2 * config.max_source_positions),
    frames=lambda _, samples: math.ceil(samples / 320),
    limit=lambda config: config.max_source_positions * 320,
    encoder=lambda model: model.encoder,  # the decoder would write transcripts
)
CLAP = Family(
    features=lambda config, stored: ClapLogMel(
        config.num_mel_bins, stored.get("frequency_min", 50), stored.get("frequency_max", 14_000), _clap_samples(config)
    ),
    frames=lambda *_: 1,
    limit=_clap_samples,
    encoder=lambda model: model.audio_model,
    config=lambda config: config.audio_config,
    states=lambda output: output.pooler_output.unsqueeze(1),  # the mean over time and frequency
    depth=lambda config: len(config.depths),
    rate=CLAP_RATE,
)
FAMILIES: Mapping[str, Family] = {
    "audio-spectrogram-transformer": AST,
    "clap": CLAP,
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
    model_config = build_config(spec.weights, spec.config, WHERE)
    kind = model_config.model_type
    family = FAMILIES.get(kind)
    if family is None:
        raise UserError(f"{WHERE}: {kind} is not one of the audio encoders {', '.join(FAMILIES)}")
    config = family.config(model_config)
    stored = {} if isinstance(spec.weights, Random) else read_json(spec.weights, "preprocessor_config.json")
    problems = []
    if inputs.rate != family.rate:
        problems.append(f"inputs.audio.rate is {inputs.rate}, but {kind} takes {family.rate} samples a second")
    if getattr(config, "enable_fusion", False):
        problems.append(f"{WHERE}: weights of {kind} with enable_fusion are not supported; use unfused ones")
    limit, frames = family.limit(config), family.frames(config, inputs.samples)
    if limit is not None and inputs.samples > limit:
        problems.append(f"inputs.audio.window is {inputs.window} s, but {kind} takes {limit / family.rate:g} s at most")
    if frames < 1 or inputs.window < MIN_WINDOW_SECONDS:
        problems.append(f"inputs.audio.window is {inputs.window} s, which is shorter than one frame of {kind}")
    if problems:
        raise UserError(*problems)
    model = family.encoder(build_model(spec.weights, model_config, load_weights, WHERE))
    if hasattr(model, "masked_spec_embed") and not config.apply_spec_augment:
        del model.masked_spec_embed  # only SpecAugment uses it; a weight without a gradient stalls distributed training
    return TransformersAudioEncoder(family, family.features(config, stored), model, config, inputs.samples)
