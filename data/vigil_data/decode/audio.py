"""Decoding of audio files into float32 mono windows at the model's sample rate.

A file is read in blocks and resampled as a stream, and reading stops when the windows are full, so memory is bounded by the
windows that are held at once.
"""

import io
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from vigil_data.decode.suppress_stderr import silenced
from vigil_data.errors import MediaError, TooLargeError
from vigil_data.loading.packing import Segment, Span
from vigil_data.settings import AudioSettings, hop_samples, window_samples

Quiet = Callable[[], AbstractContextManager[None]]
"""Context manager that silences C libraries."""

_OTHER_SOUNDS = {
    b"FORM": "AIFF",
    b".snd": "AU",
    b"caff": "CAF",
    b"#!AM": "AMR",
    b"0&\xb2u": "Windows Media",
    b"\x1aE\xdf\xa3": "WebM or Matroska",
}
_READ = "WAV, FLAC, Ogg or MP3"
_RATES = (1_000, 768_000)
_BLOCK = 65_536
_FRAMES_PER_BYTE = 10_000  # above the ratio of silence: a FLAC frame of 65,535 samples has at least 11 bytes
_MAX_AMPLITUDE = 2.0**31  # full scale is 1, or 2^31 if floats carry 32-bit integers; larger values overflow in a spectrogram


def seconds(data: bytes) -> float:
    """Return the duration of an audio file in seconds, from its header.

    Raises:
        MediaError: if it is empty, of an unknown format, truncated, or its header is invalid.
    """
    with _opened(data) as (sound, _):
        return _frames(sound, len(data)) / float(sound.samplerate)


def read_audio(data: bytes, max_seconds: float) -> str:
    """Decode an audio file completely, at its own rate, and return its format.

    Args:
        data: an encoded audio file.
        max_seconds: maximum duration.

    Raises:
        TooLargeError: if it is longer.
        MediaError: if it cannot be decoded completely, or has no samples.
    """
    with _opened(data) as (sound, quiet):
        length = _frames(sound, len(data))
        have = part = 0
        while part or not have:
            if max(length, have) > max_seconds * sound.samplerate:
                raise TooLargeError(f"a {_kind(data)} file of more than {max_seconds:,g} seconds")
            with quiet():
                part = len(_mono(sound.read(_block(sound), dtype="float32", always_2d=True)))
            have += part
            if not have:
                raise MediaError("the audio has no samples")
    return _kind(data)


def window_count(length: int, samples: int, hop: int) -> int:
    """Return the number of windows that cover a signal.

    Args:
        length: number of samples of the signal, at least 1.
        samples: number of samples of a window.
        hop: number of samples from one window's start to the next.
    """
    return 1 + max(0, math.ceil((length - samples) / hop))


def decode_audio(data: bytes, index: int, limit: int, spec: AudioSettings) -> Generator[Segment, None, int]:
    """Decode one audio file into windows, lazily, so that a consumer can hold one window at a time.

    Args:
        data: an encoded audio file of any rate and number of channels; channels are averaged.
        index: position among the item's audio files, for the spans.
        limit: maximum number of windows.
        spec: rate, window and hop.

    Yields:
        The windows (``waveform`` float32 ``[T]``, the last one padded with zeros; spans in seconds).

    Returns:
        The number of omitted windows; estimated from the header if the file was not read to its end.

    Raises:
        MediaError: if the required part of the file cannot be decoded, or it has no samples.
    """
    samples, hop = window_samples(spec), hop_samples(spec)
    with _opened(data) as (sound, quiet):
        announced = round(_frames(sound, len(data)) * spec.rate / sound.samplerate)
        held_T, begin, have, given = np.empty(0, np.float32), 0, 0, 0
        for part_T in _resampled(sound, spec.rate, quiet) if limit else ():
            held_T, have = np.concatenate([held_T, part_T]) if len(held_T) else part_T, have + len(part_T)
            while given < limit and given * hop + samples <= have:
                held_T, begin = held_T[given * hop - begin :], given * hop
                yield _window(held_T, samples, index, begin, spec.rate)
                given += 1
            if given == limit:
                return window_count(max(announced, have, 1), samples, hop) - given
    if limit == 0:
        return window_count(max(announced, 1), samples, hop)
    if have == 0:
        raise MediaError("the audio has no samples")
    total = window_count(have, samples, hop)
    for place in range(given, min(total, limit)):
        yield _window(held_T[place * hop - begin :], samples, index, place * hop, spec.rate)
    return total - min(total, limit)


def _window(sound_T: NDArray[np.float32], samples: int, index: int, start: int, rate: int) -> Segment:
    """Return the window that starts at sample ``start``, given the signal from there on."""
    padded_T = np.empty(samples, np.float32)
    padded_T[: len(sound_T)] = sound_T[:samples]
    padded_T[len(sound_T) :] = 0
    return {"waveform": padded_T}, Span(index, start / rate, (start + min(len(sound_T), samples)) / rate)


def _resampled(sound: soundfile.SoundFile, rate: int, quiet: Quiet) -> Iterator[NDArray[np.float32]]:
    """Yield the signal at ``rate`` in blocks."""
    stream = None if sound.samplerate == rate else soxr.ResampleStream(sound.samplerate, rate, 1, dtype="float32")
    block = _block(sound)
    ended = False
    while not ended:
        with quiet():
            mono_T = _mono(sound.read(block, dtype="float32", always_2d=True))
        ended = len(mono_T) == 0
        yield mono_T if stream is None else stream.resample_chunk(mono_T, last=ended)


def _block(sound: soundfile.SoundFile) -> int:
    """Return the number of samples per channel that are read at once."""
    return max(256, _BLOCK // int(sound.channels))


def _mono(block_TC: NDArray[np.float32]) -> NDArray[np.float32]:
    if block_TC.shape[1] == 1:
        mono_T: NDArray[np.float32] = block_TC[:, 0]
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            mono_T = block_TC.mean(axis=1)
    if len(mono_T) and not (mono_T.min() >= -_MAX_AMPLITUDE and mono_T.max() <= _MAX_AMPLITUDE):  # false for NaN too
        raise MediaError("the audio has samples that are NaN, infinite or far beyond full scale")
    return mono_T


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[soundfile.SoundFile, Quiet]]:
    """Open an audio file; errors of libsndfile, here or in the block, become MediaErrors.

    Yields:
        The file, and the context manager in which it must be read.
    """
    kind = _kind(data)
    if _is_cut(data, kind):
        raise MediaError(f"the {kind} file is truncated")
    # Standard error is silenced only while reading, since other code runs between two windows.
    quiet: Quiet = silenced if kind == "MP3" else nullcontext
    try:
        with quiet():
            sound = soundfile.SoundFile(io.BytesIO(data))
        with sound:
            if not _RATES[0] <= sound.samplerate <= _RATES[1]:
                raise MediaError(f"a {kind} file with a sample rate of {sound.samplerate} Hz, which is not audio")
            yield sound, quiet
    except soundfile.SoundFileError:
        raise MediaError(f"the {kind} file is damaged or truncated") from None


def _frames(sound: soundfile.SoundFile, size: int) -> int:
    """Return the number of samples per channel that the header states, for a file of ``size`` bytes."""
    frames = int(sound.frames)
    if frames < 1:
        raise MediaError("the audio has no samples")
    if frames > _FRAMES_PER_BYTE * size:
        raise MediaError("the header states no length, or more than the file can hold")
    return frames


def _kind(data: bytes) -> str:
    """Return the format by its first bytes; other formats of libsndfile are refused unread."""
    if not data:
        raise MediaError("the file is empty")
    head = data[:12]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"fLaC":
        return "FLAC"
    if head[:4] == b"OggS":
        return "Ogg"
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        return "MP3"
    other = "MP4 or M4A" if head[4:8] == b"ftyp" else _OTHER_SOUNDS.get(head[:4])
    if other:
        raise MediaError(f"{other} files are not supported; convert to {_READ}")
    raise MediaError(f"not an audio file of a supported format ({_READ})")


def _is_cut(data: bytes, kind: str) -> bool:
    """Whether the file ends before its header says; libsndfile reads such WAV and Ogg files as if they were shorter.

    FLAC is checked by its decoder. An MP3 file states no reliable length.
    """
    if kind == "Ogg":
        page = data.rfind(b"OggS")  # RFC 3533, section 6
        if len(data) < page + 27:
            return True
        lengths = data[page + 27 : page + 27 + data[page + 26]]
        return len(lengths) < data[page + 26] or len(data) < page + 27 + len(lengths) + sum(lengths)
    if kind == "WAV" and data[:4] == b"RIFF":
        place = 12
        while place + 8 <= len(data):
            size = int.from_bytes(data[place + 4 : place + 8], "little")
            if data[place : place + 4] == b"data":
                return size < 0x7FFF_0000 and place + 8 + size > len(data)  # streaming writers leave a huge size
            place += 8 + size + size % 2
    return False
