"""Speech embedding: a small convolutional network, pretrained on spoken words, whose features are enough to tell words apart."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vigil_data.errors import UserError
from vigil_data.sources import resolve
from vigil_data.specs import AudioInput
from vigil_modeling.encoders.audio.features import full_precision
from vigil_modeling.encoders.base import Encoder
from vigil_modeling.input_checks import SPEECH_RATE, speech_embedding_problems
from vigil_modeling.specs import Random, SpeechEmbeddingAudio
from vigil_modeling.weights import describe, find_weights, read_tensors, rename_by_order

FRAME, STEP, FFT = 400, 160, 512
"""Samples of a frame, from one frame to the next, and of the Fourier transform in whose middle the frame lies."""

STAGES = ((24, 1, (2, 2)), (48, 2, (1, 2)), (72, 2, (2, 2)), (96, 2, (1, 2)), (96, 2, (2, 2)))
"""Channels of each stage, its pairs of convolutions over frequency and time, and the size of its max pooling."""

WIDTH = 96

HALF_FIELD = (FFT + 75 * STEP) // 2
"""Half of the samples that a token sees, which is the silence before and after a window: its first token is at its beginning."""


class SpeechMel(nn.Module):
    """Log-mel spectrogram of 32 bands from 60 to 3,800 Hz, in units of 10 decibels, at most 80 dB below the loudest value.

    Loudness is that of 16-bit samples, and is not normalized, as in the weights' training.
    """

    window_T: Tensor
    filters_KB: Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        filters_KB = melscale_fbanks(FFT // 2 + 1, 60.0, 3800.0, 32, SPEECH_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("window_T", torch.hann_window(FRAME), persistent=False)
        self.register_buffer("filters_KB", filters_KB, persistent=False)

    def forward(self, waveform_ST: Tensor) -> Tensor:
        """``[S, T]`` to ``[S, 1, F, B]``."""
        with full_precision(waveform_ST):
            spectrum_SKF = torch.stft(
                waveform_ST * 2.0**15, FFT, STEP, FRAME, window=self.window_T, center=False, return_complex=True
            )
            power_SFK = torch.view_as_real(spectrum_SKF).square().sum(-1).transpose(1, 2)
            decibel_SFB = 10 * torch.log10((power_SFK @ self.filters_KB).clamp(min=1e-10))
            loudest_S11 = decibel_SFB.amax((1, 2), keepdim=True)
            return (torch.maximum(decibel_SFB, loudest_S11 - 80) / 10 + 2).unsqueeze(1)


class _Activation(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return functional.leaky_relu(values, 0.2).clamp(min=-0.4)


class SpeechEmbeddingEncoder(Encoder):
    """Encoder of tokens that each see 0.78 s of sound, one every 0.08 s (Lin et al. 2020, arXiv 2002.01322).

    Windows get silence before and after them, so that short words are seen as in the weights' training; any length will do.

    Args:
        samples: length of a window.
        pool: ``average``: one token per window, the mean; ``none``: all of them.
    """

    width = WIDTH

    def __init__(self, samples: int, pool: str) -> None:
        super().__init__()
        self.samples, self.pool = samples, pool
        self.tokens = 1 if pool == "average" else samples // (8 * STEP) + 1
        self.features = SpeechMel()
        self.stem = nn.Sequential(
            nn.Conv2d(1, STAGES[0][0], 3, padding=(0, 1), bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(STAGES[0][0], 1e-3),
            _Activation(),
        )
        stages, channels = [], STAGES[0][0]
        for wider, pairs, pooling in STAGES:
            steps: list[nn.Module] = []
            for _ in range(pairs):
                over_frequency = nn.Conv2d(channels, wider, (1, 3), padding=(0, 1))
                steps += [over_frequency, _Activation(), nn.Conv2d(wider, wider, (3, 1)), _Activation()]
                channels = wider
            stages.append(nn.Sequential(*steps, nn.MaxPool2d(pooling)))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(channels, WIDTH, (3, 1), bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, 0.2)
        self._recompute = False

    def forward(self, waveform: Tensor) -> Tensor:
        """Encode windows.

        Args:
            waveform: float32 ``[S, T]`` at 16,000 Hz, mono, -1 to 1.

        Returns:
            ``[S, P, 96]``
        """
        maps_SCFB = self.features(functional.pad(waveform, (HALF_FIELD, HALF_FIELD)))
        if self.training:  # Convolutions keep the format of their input, and are faster in this one.
            maps_SCFB = torch.empty_like(maps_SCFB, memory_format=torch.channels_last).copy_(maps_SCFB)
        maps_SCFB = self.stem(maps_SCFB)
        for stage in self.stages:
            # In evaluation mode too: under ZeRO-3, a rank without audio gathers the weights as often as the others do.
            maps_SCFB = checkpoint(stage, maps_SCFB, use_reentrant=False) if self._recompute else stage(maps_SCFB)
        tokens_SPD: Tensor = self.head(maps_SCFB).squeeze(3).transpose(1, 2)
        return tokens_SPD.mean(1, keepdim=True) if self.pool == "average" else tokens_SPD

    def blank(self) -> dict[str, Tensor]:
        """Return a window of silence."""
        return {"waveform": torch.zeros(1, self.samples, device=self.head.weight.device)}

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the first convolution, of each stage, and of the last convolution."""
        return [list(part.parameters()) for part in (self.stem, *self.stages, self.head)]

    def checkpoint_activations(self) -> None:
        """See :class:`Encoder`."""
        self._recompute = True


def build_speech_embedding(spec: SpeechEmbeddingAudio, inputs: AudioInput, load_weights: bool) -> SpeechEmbeddingEncoder:
    """Build the encoder of ``spec``.

    Raises:
        UserError: if the rate is another than it takes, or its weights do not fit.
    """
    if problems := speech_embedding_problems(inputs):
        raise UserError(*problems)
    encoder = SpeechEmbeddingEncoder(inputs.samples, spec.pool)
    if load_weights and not isinstance(spec.weights, Random):
        tensors = read_tensors(find_weights(resolve(spec.weights)))
        renamed = rename_by_order(tensors, encoder, describe(spec.weights))
        encoder.load_state_dict(renamed, strict=False)  # but for the counter of the batch norm, which the file lacks
    return encoder
