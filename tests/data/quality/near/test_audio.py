"""Audio is found again after encoding, changes of level, offsets and cuts, and other sounds are not."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from vigil_data.quality.near.audio import AudioPrints
from vigil_data.quality.near.search import clusters

RATE = 16000


def melody(seed: int, seconds: float = 3.0) -> NDArray[np.float64]:
    """Notes with overtones and some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(RATE * 0.25)) / RATE
    notes = []
    for _ in range(int(seconds * 4)):
        pitch = rng.uniform(150, 900)
        tone = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 5))
        notes.append(tone * np.exp(-time * rng.uniform(2, 8)) + 0.02 * rng.normal(size=len(time)))
    sound = np.concatenate(notes)
    return 0.5 * sound / np.abs(sound).max()


def encoded(sound: NDArray[np.float64], kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format=kind)
    return file.getvalue()


def test_audio_prints_find_edited_sounds() -> None:
    sounds = [melody(seed) for seed in range(12)]
    edits = [
        lambda sound: encoded(sound, "OGG"),
        lambda sound: encoded(sound, "MP3"),
        lambda sound: encoded(sound * 0.2),
        lambda sound: encoded(sound[160:]),
        lambda sound: encoded(np.concatenate([np.zeros(3000), sound]), "MP3"),
        lambda sound: encoded(sound[: int(0.9 * len(sound))], "FLAC"),
    ]
    files = [encoded(sound) for sound in sounds]
    files += [edits[place % 6](sound) for place, sound in enumerate(sounds)]
    assert clusters(AudioPrints.of(files), 0.25).tolist() == [*range(12), *range(12)]


def test_silence_and_short_sounds_equal_only_their_copies() -> None:
    silence, other_silence, click = encoded(np.zeros(RATE * 2)), encoded(np.zeros(RATE * 3)), encoded(melody(0, 0.5))
    louder = encoded(melody(0, 0.5) * 0.5)
    prints = AudioPrints.of([silence, other_silence, click, louder, silence, b"no audio"])
    assert clusters(prints, 0.25).tolist() == [0, 1, 2, 3, 0, 4]


def test_audio_prints_of_real_recordings_are_apart(shared_data: Path) -> None:
    files = sorted((shared_data / "audio" / "esc10").rglob("*.ogg"))[::8]
    label_S = clusters(AudioPrints.of([file.read_bytes() for file in files]), 0.25)
    assert len(files) == 50
    # The set itself has near-duplicates: clips that were cut from one recording and uploaded twice.
    assert len(set(label_S.tolist())) >= 49


@pytest.mark.parametrize(("first", "found"), [(0, True), (3200, True), (24000, False), (32000, False)])
def test_excerpts_are_found_if_most_of_the_shorter_file_overlaps(first: int, found: bool) -> None:
    sound = melody(3, 4)
    whole = AudioPrints.of([encoded(sound), encoded(sound[first:])])
    assert clusters(whole, 0.25).tolist() == [0, 0]  # an excerpt lies within the other
    shifted = AudioPrints.of([encoded(sound[:32000]), encoded(np.concatenate([sound[first:32000], melody(4, 4)[:first]]))])
    assert (clusters(shifted, 0.25).tolist() == [0, 0]) == found
