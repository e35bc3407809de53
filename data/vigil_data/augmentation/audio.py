"""Augmentation of audio windows: speed, reverberation, frequency response, noise, and lossy compression."""

import io
from collections.abc import Sequence
from random import Random

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from vigil_data.augmentation.specs import AudioAugmentation
from vigil_data.decode.suppress_stderr import silenced

_FORMATS = {"mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS")}
_SILENCE = 1e-5  # root mean square below which a window has no level that noise could be relative to

Waveform = NDArray[np.float32]


def augment_waveform(
    waveform_T: Waveform, rate: int, spec: AudioAugmentation, rng: Random, noise: np.random.Generator
) -> Waveform:
    """Return an augmented window of the same length.

    Args:
        waveform_T: float32 ``[T]``.
        rate: sample rate in hertz.
        spec: what to apply; each part is applied with its probability.
        rng: generator of the choices, the same for all windows of a file.
        noise: generator of the noise, of its own in each window.
    """
    if spec.speed is not None and rng.random() < spec.speed.probability:
        waveform_T = change_speed(waveform_T, rate, rng.uniform(*spec.speed.factor))
    if (room := spec.reverberation) is not None and rng.random() < room.probability:
        seed = rng.getrandbits(64)  # one room for all windows of a file
        waveform_T = reverberate(
            waveform_T, rate, rng.uniform(*room.decay), rng.uniform(*room.ratio), np.random.default_rng(seed)
        )
    if (filter_ := spec.equalizer) is not None and rng.random() < filter_.probability:
        waveform_T = equalize(waveform_T, rate, [rng.uniform(-filter_.gain, filter_.gain) for _ in range(filter_.bands)])
    if spec.noise is not None and rng.random() < spec.noise.probability:
        waveform_T = add_noise(waveform_T, rate, rng.uniform(*spec.noise.snr), rng, noise)
    if spec.codec is not None and rng.random() < spec.codec.probability:
        waveform_T = compress(waveform_T, rate, rng.choice(spec.codec.formats), rng.uniform(0.3, 0.9))
    return waveform_T


def change_speed(waveform_T: Waveform, rate: int, factor: float) -> Waveform:
    """Return the signal ``factor`` times as fast, cut or padded with zeros to its former length."""
    changed_T = soxr.resample(waveform_T, rate * factor, rate)[: len(waveform_T)]
    return np.pad(changed_T, (0, len(waveform_T) - len(changed_T))).astype(np.float32)


def reverberate(waveform_T: Waveform, rate: int, decay: float, ratio: float, room: np.random.Generator) -> Waveform:
    """Return the signal in a room, of its former length and energy.

    Args:
        waveform_T: float32 ``[T]``.
        rate: sample rate in hertz.
        decay: time in which the reverberation falls by 60 dB, in seconds.
        ratio: direct to reverberant energy in dB.
        room: generator of the room's impulse response.
    """
    seconds = np.arange(1, max(round(decay * rate), 2)) / rate
    tail = room.standard_normal(len(seconds)) * 10 ** (-3 * seconds / decay)
    tail *= 10 ** (-ratio / 20) / np.linalg.norm(tail)
    wet_T = _convolve(waveform_T, np.concatenate([[1.0], tail]))
    return _with_level(wet_T, waveform_T)


def equalize(waveform_T: Waveform, rate: int, gains: Sequence[float]) -> Waveform:
    """Return the signal with another frequency response, of its former energy.

    Args:
        waveform_T: float32 ``[T]``.
        rate: sample rate in hertz.
        gains: in dB, at frequencies spaced evenly on a logarithmic scale from 80 Hz to half the sample rate; between them, linear
            in dB over the logarithm of the frequency.
    """
    spectrum = np.fft.rfft(waveform_T)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(waveform_T), 1 / rate), 1e-9))
    knots = np.linspace(np.log2(80), np.log2(rate / 2), len(gains))
    shaped_T = np.fft.irfft(spectrum * 10 ** (np.interp(octaves, knots, gains) / 20), len(waveform_T))
    return _with_level(shaped_T, waveform_T)


def _convolve(signal: NDArray[np.floating], kernel: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the linear convolution, cut to the signal's length."""
    size = 1 << (len(signal) + len(kernel) - 2).bit_length()
    full = np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(kernel, size), size)
    cut: NDArray[np.float64] = full[: len(signal)]
    return cut


def _with_level(changed_T: NDArray[np.floating], like_T: Waveform) -> Waveform:
    """Scale a signal to the energy of another."""
    energy, wanted = float(np.linalg.norm(changed_T)), float(np.linalg.norm(like_T.astype(np.float64)))
    scaled: Waveform = (changed_T * (wanted / energy if energy > 0 else 1.0)).astype(np.float32)
    return scaled


def add_noise(waveform_T: Waveform, rate: int, snr: float, rng: Random, noise: np.random.Generator) -> Waveform:
    """Return the signal with noise at a signal-to-noise ratio in dB; silence stays silent."""
    level = float(np.sqrt(np.mean(np.square(waveform_T, dtype=np.float64))))
    if level < _SILENCE:
        return waveform_T
    made_T = background(len(waveform_T), rate, rng, noise)
    return (waveform_T + level * 10 ** (-snr / 20) * made_T).astype(np.float32)


def background(samples: int, rate: int, rng: Random, noise: np.random.Generator) -> Waveform:
    """Return hiss, rumble, hum or a chord with a root mean square of 1."""
    kind = rng.choice(("hiss", "rumble", "hum", "chord"))
    if kind == "hiss":
        made = noise.standard_normal(samples)
    elif kind == "rumble":
        kernel = np.ones(24) / 24
        made = np.convolve(noise.standard_normal(samples), kernel, "same")[:samples]
    else:
        seconds = np.arange(samples) / rate
        tones = (50, 100, 150) if kind == "hum" else [rng.uniform(180, 360) * ratio for ratio in (1, 1.25, 1.5)]
        made = np.sum([np.sin(2 * np.pi * tone * seconds) for tone in tones], axis=0)
    scaled: Waveform = (made / (np.sqrt(np.mean(made**2)) + 1e-9)).astype(np.float32)
    return scaled


def compress(waveform_T: Waveform, rate: int, codec: str, compression: float) -> Waveform:
    """Return the signal after lossy compression, of its former length.

    Args:
        waveform_T: float32 ``[T]``; louder than full scale, it is scaled down before and up again after.
        rate: sample rate in hertz.
        codec: ``mp3`` or ``ogg``.
        compression: 0 (best quality) to 1 (smallest file).
    """
    container, subtype = _FORMATS[codec]
    peak = max(float(np.abs(waveform_T).max()), 1.0)
    stream = io.BytesIO()
    with silenced():
        soundfile.write(stream, waveform_T / peak, rate, format=container, subtype=subtype, compression_level=compression)
        stream.seek(0)
        read_T, _ = soundfile.read(stream, dtype="float32")
    read_T = read_T[: len(waveform_T)] * np.float32(peak)
    return np.pad(read_T, (0, len(waveform_T) - len(read_T))).astype(np.float32)
