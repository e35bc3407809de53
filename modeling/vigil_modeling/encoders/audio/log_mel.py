"""Audio encoder: a log-mel spectrogram in the graph, then any timm backbone with one input channel."""

import warnings

import torch
from torch import Tensor, nn
from torchaudio.functional import mask_along_axis_iid
from torchaudio.transforms import MelSpectrogram

from vigil_data.errors import UserError
from vigil_data.specs import AudioInput
from vigil_modeling.encoders.audio.features import full_precision
from vigil_modeling.encoders.base import Encoder
from vigil_modeling.encoders.timm_backbone import TimmBackbone, build_backbone
from vigil_modeling.input_checks import fft_size, log_mel_problems
from vigil_modeling.specs import MelTimmAudio, SpecAugment

WHERE = "model.encoders.audio"

POWER_FLOOR = 1e-4
"""Added to the mel power before the logarithm: about 70 dB below loud speech. Next to a loud sound, the float32 rounding error of
a Fourier transform is about 1e-7 and differs between runtimes; a lower floor would amplify it."""

VARIANCE_FLOOR = 1e-2
"""Added to the variance of a window's log-mel values, so that silence stays zero and its rounding errors are not amplified."""


SILENT, SOUNDING = 0.25, 0.75
"""Mean over the bands of ``log(1 + power / POWER_FLOOR)`` below which a frame is silent, and above which it counts in full.
Between them its weight rises in proportion, since a jump would amplify the rounding errors by which runtimes differ."""


class LogMel(nn.Module):
    """Log-mel spectrogram with mean 0 and variance about 1 in each window, so that it does not depend on loudness.

    Args:
        mel: module from waveform to power ``[S, B, F]``.
        augment: masks in training, drawn from torch's global generator, whose state checkpoints hold.
        by_band: give each band the mean 0 over the frames with sound, and set the other frames to 0, so that the spectrogram does
            not depend on the microphone and the room either (cepstral mean normalization, Atal 1974).
    """

    def __init__(self, mel: MelSpectrogram, augment: SpecAugment | None = None, by_band: bool = False) -> None:
        super().__init__()
        self.mel = mel
        self._augment = augment
        self._by_band = by_band

    def forward(self, waveform_ST: Tensor) -> Tensor:
        """``[S, T]`` to ``[S, 1, B, F]``: B mel bands, F frames."""
        with full_precision(waveform_ST):
            # Relative to the floor, so that silence is exactly 0 in every runtime; the mean removes the constant.
            log_SBF = torch.log1p(self.mel(waveform_ST) / POWER_FLOOR)
            centred_SBF, variance_S11 = _centre_bands(log_SBF) if self._by_band else _centre(log_SBF)
            features_S1BF = (centred_SBF * torch.rsqrt(variance_S11 + VARIANCE_FLOOR)).unsqueeze(1)
            return features_S1BF if self._augment is None or not self.training else spec_augment(features_S1BF, self._augment)


def _centre(log_SBF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the window with mean 0, and its variance ``[S, 1, 1]``."""
    centred_SBF = log_SBF - log_SBF.mean((1, 2), keepdim=True)
    return centred_SBF, centred_SBF.square().mean((1, 2), keepdim=True)


def _centre_bands(log_SBF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the window with mean 0 in each band over the frames with sound and 0 elsewhere, and their variance ``[S, 1, 1]``."""
    weight_S1F = ((log_SBF.mean(1, keepdim=True) - SILENT) / (SOUNDING - SILENT)).clamp(0, 1)
    frames_S11 = weight_S1F.sum(2, keepdim=True).clamp_min(1)
    mean_SB1 = (log_SBF * weight_S1F).sum(2, keepdim=True) / frames_S11
    centred_SBF = (log_SBF - mean_SB1) * weight_S1F
    return centred_SBF, centred_SBF.square().sum((1, 2), keepdim=True) / (frames_S11 * log_SBF.shape[1])


def spec_augment(features_S1BF: Tensor, spec: SpecAugment) -> Tensor:
    """Return log-mel features, whose mean is 0, with bands and frames set to 0, others in each window."""
    masks = [(2, spec.frequency_width)] * spec.frequency_masks + [(3, spec.time_width)] * spec.time_masks
    for axis, width in masks:
        # The widest mask has one cell less than the parameter.
        widest = round(width * features_S1BF.shape[axis]) + 1
        features_S1BF = mask_along_axis_iid(features_S1BF, widest, 0.0, axis)
    return features_S1BF


class MelTimmEncoder(Encoder):
    """Encoder of audio windows.

    Args:
        features: module from waveform to one-channel images.
        backbone: image backbone.
        samples: length of a window.
    """

    def __init__(self, features: LogMel, backbone: TimmBackbone, samples: int) -> None:
        super().__init__()
        self.features = features
        self.backbone = backbone
        self.samples = samples
        self.width, self.tokens = backbone.width, backbone.tokens

    def forward(self, waveform: Tensor) -> Tensor:
        """Encode windows.

        Args:
            waveform: float32 ``[S, T]``, mono, about -1 to 1.

        Returns:
            ``[S, P, D]``
        """
        tokens_SPD: Tensor = self.backbone(self.features(waveform))
        return tokens_SPD

    def blank(self) -> dict[str, Tensor]:
        """Return a window of silence."""
        return {"waveform": torch.zeros(1, self.samples, device=next(self.parameters()).device)}

    def layers(self) -> list[list[nn.Parameter]]:
        """See :meth:`TimmBackbone.layers`."""
        return self.backbone.layers()

    def checkpoint_activations(self) -> None:
        """See :class:`Encoder`."""
        self.backbone.checkpoint_activations(WHERE)


def build_mel(spec: MelTimmAudio, inputs: AudioInput, load_weights: bool) -> MelTimmEncoder:
    """Build the encoder of ``spec``.

    Raises:
        UserError: if the spectrogram is impossible at this rate and window, and as :func:`build_backbone`.
    """
    features = _log_mel(spec, inputs)
    with torch.no_grad():
        shape = features(torch.zeros(1, inputs.samples)).shape
    backbone = build_backbone(spec, (1, int(shape[2]), int(shape[3])), load_weights, WHERE)
    return MelTimmEncoder(features, backbone, inputs.samples)


def _log_mel(spec: MelTimmAudio, inputs: AudioInput) -> LogMel:
    frame, step = round(spec.frame * inputs.rate), round(spec.step * inputs.rate)
    high = spec.high if spec.high is not None else inputs.rate / 2
    if problems := log_mel_problems(spec, inputs):
        raise UserError(*problems)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="At least one mel filterbank has all zero values")
        try:
            mel = MelSpectrogram(inputs.rate, fft_size(spec, inputs), frame, step, spec.low, high, n_mels=spec.mels)
        except UserWarning:
            raise UserError(
                f"{WHERE}.mels: {spec.mels} bands are too many for frames of {spec.frame} s at {inputs.rate} Hz: some are empty"
            ) from None
    return LogMel(mel, spec.spec_augment, spec.normalize == "band")
