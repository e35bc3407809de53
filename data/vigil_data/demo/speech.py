"""Speech of the demonstration: each sentence is synthesized once, then varied in voice and background for every clip.

The synthesizer, hibari, has one voice; resampling changes its pitch and pace. Voice and background are independent of the words,
so that only the words carry information about the labels.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from vigil_data.augmentation.audio import background
from vigil_data.errors import UserError

RATE = 16_000
"""Sample rate of the clips in hertz."""

PROCESSES = min(os.cpu_count() or 1, 4)
"""Processes that synthesize speech, or draw and record, at the same time."""

Sound = NDArray[np.float32]


def synthesise(sentences: Sequence[str], progress: Callable[[int, int], None] | None = None) -> dict[str, Sound]:
    """Synthesize each sentence, in up to four processes.

    Args:
        sentences: unique sentences.
        progress: called with the number of finished sentences and their total.

    Returns:
        Sentence to its signal, float32 ``[T]`` at :data:`RATE`.

    Raises:
        UserError: if the synthesizer is not installed.
    """
    try:
        import hibari  # noqa: F401
    except ImportError:
        raise UserError("the demonstration needs the speech synthesizer hibari-tts: pip install 'vigil[demo]'") from None
    spoken: dict[str, Sound] = {}
    for sentence, sound in zip(sentences, _sounds(sentences), strict=True):
        spoken[sentence] = sound
        if progress:
            progress(len(spoken), len(sentences))
    return spoken


def _sounds(sentences: Sequence[str]) -> Iterator[Sound]:
    if PROCESSES == 1 or len(sentences) < 100:  # starting a process takes about as long as 100 sentences
        yield from map(_say, sentences)
        return
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_say, sentences, chunksize=16)


@cache
def _voice() -> tuple[Any, int]:
    from hibari import SAMPLE_RATE, Hibari

    return Hibari(), SAMPLE_RATE


def _say(sentence: str) -> Sound:
    voice, rate = _voice()
    sound: Sound = soxr.resample(voice(sentence, seed=0), rate, RATE).astype(np.float32)
    return sound


def record(sound: Sound, rng: Random) -> bytes:
    """Return a clip of ``sound`` as FLAC with random pitch and pace, level, offset and background.

    Args:
        sound: float32 ``[T]`` at :data:`RATE`.
        rng: random generator.
    """
    noise = np.random.default_rng(rng.getrandbits(32))
    voice = soxr.resample(sound, RATE * rng.uniform(0.9, 1.15), RATE)
    clip = np.concatenate([np.zeros(round(RATE * rng.uniform(0.0, 0.3)), np.float32), voice])
    level = float(np.sqrt(np.mean(voice**2))) + 1e-6
    clip += level * 10 ** (-rng.uniform(15, 35) / 20) * background(len(clip), RATE, rng, noise)
    return _encode(clip, rng)


def record_episode(sounds: Sequence[Sound], rng: Random) -> tuple[bytes, list[tuple[float, float]]]:
    """Return a recording of sounds one after the other as FLAC, with one random pitch and pace, level and background.

    Args:
        sounds: float32 ``[T]`` at :data:`RATE`, each followed by a random pause.
        rng: random generator.

    Returns:
        The recording, and the start and end of each sound in seconds.
    """
    noise = np.random.default_rng(rng.getrandbits(32))
    rate = RATE * rng.uniform(0.9, 1.15)
    parts, times, samples = [], [], 0
    for sound in sounds:
        voice = soxr.resample(sound, rate, RATE)
        pause = np.zeros(round(RATE * rng.uniform(0.3, 1.0)), np.float32)
        times.append((round(samples / RATE, 2), round((samples + len(voice)) / RATE, 2)))
        parts += [voice, pause]
        samples += len(voice) + len(pause)
    clip = np.concatenate(parts)
    level = float(np.sqrt(np.mean(clip**2))) + 1e-6
    clip += level * 10 ** (-rng.uniform(15, 35) / 20) * background(len(clip), RATE, rng, noise)
    return _encode(clip, rng), times


def _encode(clip: Sound, rng: Random) -> bytes:
    clip *= rng.uniform(0.3, 0.95) / max(float(np.abs(clip).max()), 1e-6)
    stream = io.BytesIO()
    soundfile.write(stream, clip, RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
