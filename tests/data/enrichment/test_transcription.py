"""Engines of transcripts: Whisper's adapter by a package with the same interface, and any program."""

import io
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from vigil_data.enrichment.engines import EngineError
from vigil_data.enrichment.transcription import RATE, FasterWhisper, TranscriptionCommand
from vigil_data.errors import MediaError, UserError
from vigil_data.items import Item


def tone(seconds: float, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(round(seconds * rate)) / 10), rate, format="WAV")
    return file.getvalue()


class Segment(NamedTuple):
    start: float
    end: float
    text: str


class WhisperModel:
    """The part of faster_whisper.WhisperModel (1.1) that the adapter calls: a generator of segments, and information."""

    made: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, model_size_or_path: str, device: str = "auto", local_files_only: bool = False) -> None:
        self.made.append({"path": model_size_or_path, "local": local_files_only})

    def transcribe(self, audio: Any, language: str | None = None) -> tuple[Iterator[Segment], object]:
        assert audio.dtype == np.float32
        assert audio.ndim == 1
        seconds = len(audio) / RATE
        if seconds > 100:
            raise RuntimeError("out of memory")
        spoken = f"{language or 'any'} {seconds:g}"
        return iter([Segment(0.0, 1.0, f" {spoken} "), Segment(40.0, 39.98, "late"), Segment(41, 42, " ")]), object()


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    package = types.ModuleType("faster_whisper")
    package.WhisperModel = WhisperModel  # type: ignore[attr-defined]
    package.__version__ = "1.1.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", package)
    (tmp_path / "model.bin").write_bytes(b"weights")
    return tmp_path


def test_faster_whisper_reads_each_recording_with_a_local_model(whisper: Path) -> None:
    engine = FasterWhisper(whisper, language="en")
    finding = engine(Item("1", audio=(tone(45), tone(0.5, 44_100))))
    assert finding.texts == ["en 45", "late", "en 0.5", "late"]
    assert finding.times == [(0.0, 1.0), (40.0, 40.0), (0.0, 1.0), (40.0, 40.0)]
    assert WhisperModel.made[-1] == {"path": str(whisper), "local": True}
    with pytest.raises(EngineError, match="faster-whisper: out of memory"):
        engine(Item("1", audio=(tone(101),)))
    with pytest.raises(MediaError, match="truncated"):
        engine(Item("1", audio=(tone(1)[:-100],)))


def test_faster_whisper_identity_follows_the_model(whisper: Path) -> None:
    first = FasterWhisper(whisper).identity
    (whisper / "model.bin").write_bytes(b"other weights")
    assert first.startswith("faster-whisper 1.1.0 model ")
    assert FasterWhisper(whisper).identity != first != FasterWhisper(whisper, "de").identity
    (whisper / "model.bin").unlink()
    with pytest.raises(UserError, match=r"no model\.bin; name the folder of a Whisper model"):
        FasterWhisper(whisper)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that prints what its first argument names, about the WAV file in the second."""
    file = tmp_path / "speech.py"
    file.write_text(
        "import json, sys, time, wave\n"
        "with wave.open(sys.argv[2]) as sound:\n"
        "    said = f'{sound.getframerate()} {sound.getnchannels()} {sound.getnframes()}'\n"
        "if sys.argv[1] == 'json':\n"
        "    print(json.dumps({'segments': [{'start': 0, 'end': 1, 'text': said}]}))\n"
        "elif sys.argv[1] == 'vtt':\n"
        "    print(f'WEBVTT\\n\\n00:00.000 --> 00:01.000\\n{said}')\n"
        "elif sys.argv[1] == 'sleep':\n"
        "    time.sleep(60)\n"
        "elif sys.argv[1] == 'fail':\n"
        "    sys.exit('no\\nmodel \\x1b[1m')\n"
        "else:\n"
        "    print('good morning')\n"
    )
    return file


def test_command_gets_a_wav_file_and_may_print_any_transcript(program: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    for kind in ("json", "vtt"):
        engine = TranscriptionCommand(f"{sys.executable} {program} {kind}", scratch=tmp_path / "scratch")
        finding = engine(Item("1", audio=(tone(2), tone(31, 44_100))))
        assert (finding.texts, finding.times) == (["16000 1 32000", f"16000 1 {31 * 16_000}"], [(0, 1), (0, 1)])
    assert list((tmp_path / "scratch").iterdir()) == []


def test_command_reports_programs_that_fail(program: Path) -> None:
    for kind, reason in (
        ("fail", r"python\S* ended with status 1: model \\x1b\[1m$"),
        ("prose", "output of python.*:1: text before the first time"),
        ("sleep", "ran for more than 0.5 s and was stopped"),
    ):
        engine = TranscriptionCommand(f"{sys.executable} {program} {kind} {{}}", timeout=0.5 if kind == "sleep" else 30)
        with pytest.raises(EngineError, match=reason):
            engine(Item("1", audio=(tone(0.1),)))
    for command, reason in (("no-such-program x", "no such program"), ("", "no such program"), ("'", "No closing quotation")):
        with pytest.raises(UserError, match=reason):
            TranscriptionCommand(command)


def test_command_identity_follows_the_files_of_the_program(program: Path) -> None:
    first = TranscriptionCommand(f"{sys.executable} {program} json").identity
    program.write_text(json.dumps("other"))
    assert TranscriptionCommand(f"{sys.executable} {program} json").identity != first
