"""Feature extraction of the pretrained audio encoders as torch operations, so that it is exported with the model.

Each is compared in the tests with the extractor of the transformers library that the weights were trained with.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from vigil_modeling.input_checks import CLAP_RATE, SPEECH_RATE


@contextlib.contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Disable autocast: spectra span more orders of magnitude than bfloat16 can represent."""
    if torch.is_autocast_enabled(tensor.device.type):
        with torch.autocast(tensor.device.type, enabled=False):
            yield
    else:  # entering autocast, even to switch it off, would be recorded in an exported graph
        yield


class Standardise(nn.Module):
    """Normalization of each window to zero mean and unit variance, for wav2vec 2.0, HuBERT and WavLM.

    Args:
        enabled: false returns the waveform unchanged, as some checkpoints expect.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def forward(self, waveform_ST: Tensor) -> Tensor:
        """``[S, T]`` to ``[S, T]``."""
        if not self.enabled:
            return waveform_ST
        centred_ST = waveform_ST - waveform_ST.mean(1, keepdim=True)
        return centred_ST * torch.rsqrt(centred_ST.square().mean(1, keepdim=True) + 1e-7)


class WhisperLogMel(nn.Module):
    """Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2).

    Args:
        mels: mel bands.
        frames: number of frames of the encoder's input (3000 for 30 s); a shorter window is padded with silence.
    """

    window: Tensor
    filters_BK: Tensor

    def __init__(self, mels: int, frames: int) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.samples = frames * 160
        filters = mel_filter_bank(201, mels, 0.0, SPEECH_RATE / 2, SPEECH_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        self.register_buffer("filters_BK", torch.from_numpy(filters).T.float().contiguous(), persistent=False)

    def forward(self, waveform_ST: Tensor) -> Tensor:
        """``[S, T]`` to ``[S, B, frames]``."""
        with full_precision(waveform_ST):
            padded_ST = functional.pad(waveform_ST, (0, self.samples - waveform_ST.shape[1]))
            spectrum_SKF = torch.stft(padded_ST, 400, 160, window=self.window, return_complex=True)[..., :-1]
            power_SKF = torch.view_as_real(spectrum_SKF).square().sum(-1)
            log_SBF = torch.log10((self.filters_BK @ power_SKF).clamp(min=1e-10))
            loudest_S11 = log_SBF.amax((1, 2), keepdim=True)
            return (torch.maximum(log_SBF, loudest_S11 - 8.0) + 4.0) / 4.0


class ClapLogMel(nn.Module):
    """CLAP's log-mel spectrogram in decibels, of a window that is repeated as often as it fits (Wu et al. 2023, section 3.2).

    Args:
        mels: mel bands.
        low: lowest frequency in hertz.
        high: highest frequency in hertz.
        samples: samples of the encoder's input; a shorter window is repeated, then padded with silence.
    """

    window: Tensor
    filters_BK: Tensor

    def __init__(self, mels: int, low: float, high: float, samples: int) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.samples = samples
        filters = mel_filter_bank(513, mels, low, high, CLAP_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("window", torch.hann_window(1024), persistent=False)
        self.register_buffer("filters_BK", torch.from_numpy(filters).T.float().contiguous(), persistent=False)

    def forward(self, waveform_ST: Tensor) -> Tensor:
        """``[S, T]`` to ``[S, 1, frames, B]``."""
        with full_precision(waveform_ST):
            repeated_ST = waveform_ST.repeat(1, self.samples // waveform_ST.shape[1])
            padded_ST = functional.pad(repeated_ST, (0, self.samples - repeated_ST.shape[1]))
            spectrum_SKF = torch.stft(padded_ST, 1024, 480, window=self.window, return_complex=True)
            power_SKF = torch.view_as_real(spectrum_SKF).square().sum(-1)
            decibel_SBF = 10 * torch.log10((self.filters_BK @ power_SKF).clamp(min=1e-10))
            return decibel_SBF.transpose(1, 2).unsqueeze(1)


class KaldiFbank(nn.Module):
    """Kaldi's log mel filterbank, the input of the Audio Spectrogram Transformer (Gong et al. 2021, section 3.1).

    Frames of 25 ms every 10 ms that lie completely inside the window; the mean of each is subtracted, then it is pre-emphasised,
    multiplied by a Hann window and padded to 512 samples. These steps and the Fourier transform are linear in the frame, so they
    are one matrix, computed in float64.

    Args:
        mels: mel bands.
        frames: number of frames of the encoder's input; shorter windows are padded with zeros before normalization, longer ones
            are cut.
        mean: mean of the values over the training set; ``None`` for no normalization.
        std: standard deviation of the values over the training set.
    """

    real_TK: Tensor
    imaginary_TK: Tensor
    filters_KB: Tensor

    def __init__(self, mels: int, frames: int, mean: float | None, std: float) -> None:
        super().__init__()
        from torchaudio.compliance.kaldi import get_mel_banks

        self.frames, self.mean, self.std = frames, mean, std
        length, n_fft = 400, 512
        eye = torch.eye(length, dtype=torch.float64)
        frame = eye - 1 / length  # minus its mean
        previous = torch.cat([frame[:, :1], frame[:, :-1]], dim=1)
        frame = (frame - 0.97 * previous) * torch.hann_window(length, periodic=False, dtype=torch.float64)
        spectrum = torch.fft.rfft(frame, n=n_fft)[:, : n_fft // 2]  # Kaldi's filters omit the highest frequency
        filters, _ = get_mel_banks(mels, n_fft, float(SPEECH_RATE), 20.0, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("real_TK", spectrum.real.float().contiguous(), persistent=False)
        self.register_buffer("imaginary_TK", spectrum.imag.float().contiguous(), persistent=False)
        self.register_buffer("filters_KB", filters.T.float().contiguous(), persistent=False)

    def forward(self, waveform_ST: Tensor) -> Tensor:
        """``[S, T]`` to ``[S, frames, B]``."""
        with full_precision(waveform_ST):
            frames_SFT = waveform_ST.unfold(1, 400, 160)
            power_SFK = (frames_SFT @ self.real_TK).square() + (frames_SFT @ self.imaginary_TK).square()
            log_SFB = torch.log((power_SFK @ self.filters_KB).clamp(min=torch.finfo(torch.float32).eps))
            fitted_SFB = functional.pad(log_SFB[:, : self.frames], (0, 0, 0, max(self.frames - log_SFB.shape[1], 0)))
            return fitted_SFB if self.mean is None else (fitted_SFB - self.mean) / (2 * self.std)


def frames_of(samples: int, kernels: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return the number of output frames of a stack of unpadded convolutions for a window of ``samples``."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = math.floor((samples - kernel) / stride) + 1
    return samples
