"""Spoken digits of synthetic voices, for ``leave_one_out.py digits``: eSpeak NG's variants, Flite's and Festival's voices.

usage: python benchmarks/digit_voices.py FOLDER

Writes 8 kHz files ``DIGIT_ENGINE.VOICE_TAKE.wav`` with random rate and pitch, always the same ones. Needs the package
espeakng-loader (its engine is GPL-3), and Debian's flite, festival, festvox-kallpc16k, festvox-kdlpc16k and festvox-us-slt-hts.
"""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 8000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-us-nyc")
FLITE = {"kal": 110, "kal16": 110, "awb": 130, "rms": 100, "slt": 180}
"""Voice to its mean pitch in hertz."""
FESTIVAL = ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")
AUDIO_OUTPUT_SYNCHRONOUS, RATE_PARAMETER, PITCH_PARAMETER = 2, 1, 3  # of espeak-ng/speak_lib.h
Clip = tuple[int, str, int, NDArray[np.float32]]
"""Digit, voice, take, and samples at :data:`RATE`."""


def espeak() -> Iterator[Clip]:
    """Yield each digit once in each accent and variant of eSpeak NG."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    pieces: list[NDArray[np.int16]] = []
    callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    @callback_type
    def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    rng = np.random.default_rng(0)
    variants = sorted(path.name for path in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir())
    for accent in ACCENTS:
        for variant in variants:
            for digit, word in enumerate(WORDS):
                speed, pitch = int(rng.integers(130, 230)), int(rng.integers(25, 75))
                pieces.clear()
                if library.espeak_SetVoiceByName(f"{accent}+{variant}".encode()):
                    break
                library.espeak_SetParameter(RATE_PARAMETER, speed, 0)
                library.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
                text = word.encode()
                library.espeak_Synth(text, len(text) + 1, 0, 0, 0, 1, None, None)
                library.espeak_Synchronize()
                if pieces:
                    samples = np.concatenate(pieces).astype(np.float32) / 32768
                    yield digit, f"espeak.{accent}.{variant}", 0, soxr.resample(samples, rate, RATE)


def flite(takes: int = 24) -> Iterator[Clip]:
    """Yield each digit in Flite's voices, with other rates and pitches in each take."""
    rng = np.random.default_rng(1)
    for voice, pitch in FLITE.items():
        for take in range(takes):
            for digit, word in enumerate(WORDS):
                settings = {
                    "duration_stretch": rng.uniform(0.75, 1.4),
                    "int_f0_target_mean": pitch * rng.uniform(0.75, 1.35),
                    "int_f0_target_stddev": rng.uniform(5, 30),
                }
                options = [option for name, value in settings.items() for option in ("--setf", f"{name}={value:.2f}")]
                yield digit, f"flite.{voice}", take, _recorded(["flite", "-voice", voice, "-t", word, *options, "-o"])


def festival() -> Iterator[Clip]:
    """Yield each digit in Festival's voices, at three rates."""
    for voice in FESTIVAL:
        for take, stretch in enumerate((0.8, 1.0, 1.25)):
            settings = ["-eval", f"(voice_{voice})", "-eval", f"(Parameter.set 'Duration_Stretch {stretch})"]
            for digit, word in enumerate(WORDS):
                yield digit, f"festival.{voice}", take, _recorded(["text2wave", *settings, "-o"], word)


def _recorded(command: list[str], text: str = "") -> NDArray[np.float32]:
    """Run a command that writes a wav file whose path is its last argument."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        subprocess.run([*command, str(path)], input=text, text=True, check=True, capture_output=True)
        samples, rate = soundfile.read(path, dtype="float32")
    resampled: NDArray[np.float32] = soxr.resample(samples, rate, RATE)
    return resampled


def main() -> None:
    """Write the clips, without the silence around them."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    engines: tuple[Callable[[], Iterator[Clip]], ...] = (espeak, flite, festival)
    for engine in engines:
        count = 0
        for digit, voice, take, samples in engine():
            sounding = np.flatnonzero(np.abs(samples) > 0.01)
            if len(sounding):
                clip = samples[max(sounding[0] - 200, 0) : sounding[-1] + 400]
                soundfile.write(folder / f"{digit}_{voice.replace('_', '').replace(' ', '')}_{take}.wav", clip, RATE)
                count += 1
        print(f"{engine.__name__}: {count} clips", flush=True)


if __name__ == "__main__":
    main()
