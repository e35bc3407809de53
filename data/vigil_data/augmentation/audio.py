"""Augmentation of audio windows: speed, noise, and lossy compression."""

import io
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
    if spec.noise is not None and rng.random() < spec.noise.probability:
        waveform_T = add_noise(waveform_T, rate, rng.uniform(*spec.noise.snr), rng, noise)
    if spec.codec is not None and rng.random() < spec.codec.probability:
        waveform_T = compress(waveform_T, rate, rng.choice(spec.codec.formats), rng.uniform(0.3, 0.9))
    return waveform_T


def change_speed(waveform_T: Waveform, rate: int, factor: float) -> Waveform:
    """Return the signal ``factor`` times as fast, cut or padded with zeros to its former length."""
    changed_T = soxr.resample(waveform_T, rate * factor, rate)[: len(waveform_T)]
    return np.pad(changed_T, (0, len(waveform_T) - len(changed_T))).astype(np.float32)


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
