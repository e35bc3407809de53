"""Sounds to windows: against slices of the whole sound resampled at once, and every way in which a file can be broken."""

import io
import math
import os
import threading
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.decode.audio import decode_audio, read_audio, seconds, window_count
from vigil_data.errors import MediaError, TooLargeError
from vigil_data.loading.packing import gather
from vigil_data.specs import AudioInput

RNG = np.random.default_rng(0)


def encoded(samples_TC, rate=16_000, form="WAV", subtype=None):
    file = io.BytesIO()
    samples_TC = samples_TC[:, None] if samples_TC.ndim == 1 else samples_TC
    with soundfile.SoundFile(file, "w", rate, samples_TC.shape[1], format=form, subtype=subtype) as sound:
        for start in range(0, len(samples_TC), 60_000):  # libsndfile's Vorbis encoder crashes on a long sound in one piece
            sound.write(samples_TC[start : start + 60_000])
    return file.getvalue()


def noise(length, channels=1):
    return (0.1 * RNG.standard_normal((length, channels))).astype(np.float32)


def windows(data, limit=10_000, **spec):
    return gather(decode_audio(data, 0, limit, AudioInput(**spec)))


@settings(deadline=None)
@given(
    length=st.integers(1, 400),
    samples=st.integers(1, 60),
    hop=st.floats(0.01, 1),
    limit=st.integers(0, 50),
)
def test_decode_audio_windows_are_slices_of_the_complete_signal(length, samples, hop, limit):
    hop_samples = max(1, round(samples * hop))
    sound_T = noise(length)[:, 0]
    spec = AudioInput(rate=1000, window=samples / 1000, hop=hop_samples / 1000)
    decoded, left_out = gather(decode_audio(encoded(sound_T, 1000, subtype="FLOAT"), 5, limit, spec))
    # By hand: go on as long as there is sound that no window has reached.
    starts = [0]
    while starts[-1] + samples < length:
        starts.append(starts[-1] + hop_samples)
    assert window_count(length, samples, hop_samples) == len(starts)
    assert len(decoded.arrays) == min(limit, len(starts))
    assert left_out == len(starts) - len(decoded.arrays)
    padded_T = np.concatenate([sound_T, np.zeros(starts[-1] + samples)])
    for array, span, start in zip(decoded.arrays, decoded.spans, starts, strict=False):
        assert array["waveform"].dtype == np.float32
        np.testing.assert_array_equal(array["waveform"], padded_T[start : start + samples].astype(np.float32))
        assert (span.index, span.start, span.stop) == (5, start / 1000, min(start + samples, length) / 1000)
        assert span.stop > span.start


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_decode_audio_streamed_resampling_equals_one_pass(rate, channels):
    sound_TC = noise(5 * rate + 17, channels)
    expected_T = soxr.resample(sound_TC.mean(axis=1), rate, 16_000)
    decoded, left_out = windows(encoded(sound_TC, rate, subtype="FLOAT"), window=1.0, hop=0.7)
    assert left_out == 0
    assert len(decoded.arrays) == window_count(len(expected_T), 16_000, 11_200)
    for place, array in enumerate(decoded.arrays):
        slice_T = expected_T[place * 11_200 : place * 11_200 + 16_000]
        np.testing.assert_array_equal(array["waveform"][: len(slice_T)], slice_T)
        assert not array["waveform"][len(slice_T) :].any()
    assert decoded.spans[-1].stop == len(expected_T) / 16_000


@pytest.mark.parametrize(
    ("form", "subtype", "tolerance"),
    [("WAV", "PCM_U8", 0.01), ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "DOUBLE", 1e-7), ("FLAC", None, 1e-4),
     ("OGG", "VORBIS", 0.05), ("OGG", "OPUS", 0.05), ("MP3", None, 0.05)],
)  # fmt: skip
def test_decode_audio_formats(form, subtype, tolerance):
    tone_T = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 16_000)
    data = encoded(tone_T, 16_000, form, subtype)
    assert seconds(data) == pytest.approx(3.0, abs=0.1)
    decoded, _ = windows(data, window=1.0)
    heard_T = decoded.arrays[1]["waveform"]
    expected_T = tone_T[16_000:32_000]
    if form == "MP3":  # whose encoder shifts the sound a little
        spectrum = [np.abs(np.fft.rfft(wave_T)) / 16_000 for wave_T in (heard_T, expected_T)]
        np.testing.assert_allclose(*spectrum, atol=0.02)
    else:
        np.testing.assert_allclose(heard_T, expected_T, atol=tolerance)


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3", "WAV"])
def test_read_audio_reads_to_the_end(form):
    data = encoded(noise(48_000), form=form)
    assert read_audio(data, 3.2) == {"OGG": "Ogg"}.get(form, form)
    with pytest.raises(TooLargeError, match=r"file of more than 2\.5 seconds"):
        read_audio(data, 2.5)
    if form in ("FLAC", "OGG"):
        with pytest.raises(MediaError, match=r"damaged or truncated|truncated"):
            read_audio(data[:-100], 60)


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3", "WAV"])
def test_decode_audio_bounds_memory_of_long_files(form):
    minutes = 10 if form != "WAV" else 3
    data = encoded(np.tile(noise(16_000), (minutes * 60, 1)), form=form)
    tracemalloc.start()
    decoded, left_out = windows(data, limit=3, window=5.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(decoded.arrays) == 3
    assert left_out == pytest.approx(minutes * 12 - 3, abs=1)
    # The bytes themselves, three windows twice (read, padded) and a block: far from the 38 MB of ten minutes.
    assert peak < len(data) + 2_500_000


def test_decode_audio_limit_zero_reads_only_the_header():
    decoded, left_out = windows(encoded(noise(80_000)), limit=0, window=1.0, hop=0.5)
    assert (list(decoded.arrays), list(decoded.spans), left_out) == ([], [], 9)


def test_decode_audio_reads_a_streamed_wav_without_length():
    data = bytearray(encoded(noise(16_000)))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert seconds(bytes(data)) == 1.0
    assert len(windows(bytes(data), window=0.5)[0].arrays) == 2


def test_decode_audio_reads_a_truncated_mp3_to_its_end():
    data = encoded(noise(48_000), form="MP3")
    decoded, left_out = windows(data[: len(data) // 2], window=1.0)
    assert len(decoded.arrays) == 2
    assert left_out == 0


def patched(data, place, new):
    return data[:place] + new + data[place + len(new) :]


def with_value(value):
    sound_T = noise(16_000)[:, 0]
    sound_T[100] = value
    return encoded(sound_T, subtype="FLOAT")


FLAC, WAV = encoded(noise(48_000, 2), form="FLAC"), encoded(noise(48_000))
OGG, OPUS, MP3 = (
    encoded(noise(48_000), form="OGG"),
    encoded(noise(48_000), form="OGG", subtype="OPUS"),
    encoded(noise(48_000), form="MP3"),
)
UNKNOWN = "not an audio file of a supported format (WAV, FLAC, Ogg or MP3)"
ABSURD = "the audio has samples that are NaN, infinite or far beyond full scale"
UNSURE = "the header states no length, or more than the file can hold"
FIRST_SIGHT = {
    "empty": (b"", "the file is empty"),
    "text": (b"This is no sound, whatever its name says. " * 9, UNKNOWN),
    "wav signature": (WAV[:10], UNKNOWN),
    "riff of something else": (b"RIFF\x00\x00\x00\x00AVI LIST", UNKNOWN),
    "wav header": (WAV[:40], "the WAV file is damaged or truncated"),
    "wav cut": (WAV[:-2], "the WAV file is truncated"),
    "wav of zero frames": (encoded(np.zeros((0, 1))), "the audio has no samples"),
    "wav of 7 Hz": (encoded(noise(99), 7), "a WAV file with a sample rate of 7 Hz, which is not audio"),
    "flac header": (FLAC[:10], "the FLAC file is damaged or truncated"),
    "flac of unknown length": (patched(FLAC, 21, bytes([FLAC[21] & 0xF0, 0, 0, 0, 0])), UNSURE),
    "flac that lies": (patched(FLAC, 21, bytes([FLAC[21] | 0x0F])), UNSURE),
    "ogg header": (OGG[:20], "the Ogg file is truncated"),
    "ogg cut": (OGG[: len(OGG) // 2], "the Ogg file is truncated"),
    "opus cut": (OPUS[:-3], "the Ogg file is truncated"),
    "ogg of something": (b"OggS" + bytes(22) + b"\x01\x09" + b"something", "the Ogg file is damaged or truncated"),
    "mp3 header": (MP3[:100], "the MP3 file is damaged or truncated"),
    "mp3 garbage": (b"ID3" + RNG.bytes(3000), "the MP3 file is damaged or truncated"),
    "mp3 sync and garbage": (b"\xff\xfb\x90\x00" + RNG.bytes(3000), "the MP3 file is damaged or truncated"),
    "m4a": (b"\x00\x00\x00\x20ftypM4A " + bytes(99), "MP4 or M4A files are not supported; convert to WAV, FLAC, Ogg or MP3"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(99), "WebM or Matroska files are not supported; convert to WAV, FLAC, Ogg or MP3"),
    "aiff": (encoded(noise(99), form="AIFF"), "AIFF files are not supported; convert to WAV, FLAC, Ogg or MP3"),
}  # fmt: skip
FULL_SIGHT = {
    "flac cut": (FLAC[: len(FLAC) // 2], "the FLAC file is damaged or truncated"),
    "flac damaged": (patched(FLAC, 9000, RNG.bytes(5000)), "the FLAC file is damaged or truncated"),
    "nan": (with_value(np.nan), ABSURD),
    "infinite": (with_value(-np.inf), ABSURD),
    "overflowing": (with_value(3e38), ABSURD),
    "less than a sample": (encoded(noise(1), 48_000), "the audio has no samples"),
}


@pytest.mark.parametrize("name", [*FIRST_SIGHT, *FULL_SIGHT])
def test_decode_audio_broken_file_is_one_clear_line(name, capfd):
    data, reason = (FIRST_SIGHT | FULL_SIGHT)[name]
    with pytest.raises(MediaError) as caught:
        windows(data, window=1.0)
    assert str(caught.value) == reason
    if name in FIRST_SIGHT:
        with pytest.raises(MediaError) as caught:
            seconds(data)
        assert str(caught.value) == reason
    else:
        assert seconds(data) > 0
    assert capfd.readouterr() == ("", "")


@settings(deadline=None, max_examples=300)
@given(
    data=st.sampled_from([WAV, FLAC, OGG, OPUS, MP3]),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20),
)
def test_decode_audio_damage_is_a_media_error_or_audio(data, cut, flips):
    damaged = bytearray(data)
    for place, value in flips:
        damaged[int(place**3 * len(damaged))] = value  # mostly in the header
    try:
        decoded, _ = windows(bytes(damaged[: int(cut * len(damaged)) + 1]), limit=3, window=1.0)
    except MediaError as error:
        lines = str(error).splitlines()
        assert len(lines) == 1
        return
    for array in decoded.arrays:
        assert array["waveform"].shape == (16_000,)
        assert np.isfinite(array["waveform"]).all()


def test_suppress_stderr_restores_it_with_threads(capfd):
    threads = [threading.Thread(target=lambda: windows(MP3, window=1.0)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


def test_decode_audio_real_recordings(shared_data):
    files = sorted((shared_data / "audio").rglob("*.ogg"))[::40] + sorted((shared_data / "audio").rglob("*.wav"))[::120]
    assert files
    for file in files:
        data = file.read_bytes()
        decoded, left_out = windows(data, window=1.0)
        assert left_out == 0
        assert len(decoded.arrays) == pytest.approx(math.ceil(seconds(data)), abs=1)
        assert max(np.abs(array["waveform"]).max() for array in decoded.arrays) <= 1.5
