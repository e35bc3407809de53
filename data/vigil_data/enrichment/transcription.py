"""Transcripts of recordings by faster-whisper with a local model, or by any program that prints one."""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from vigil_data.decode.audio import decode_audio
from vigil_data.enrichment.engines import EngineError, Finding, Kind, model_hash
from vigil_data.errors import UserError, one_line
from vigil_data.importers.transcripts import MAX_SEGMENT_SECONDS, Cue, parse_transcript, timed_texts
from vigil_data.items import Item, Modality
from vigil_data.specs import AudioInput

RATE = 16_000
"""Sample rate in hertz at which engines get sound; Whisper's."""

TIMEOUT_SECONDS = 3_600.0
"""Default time after which a program is stopped."""

_BLOCKS = AudioInput(rate=RATE, window=30.0, max_windows=1)
_NO_LIMIT = 1 << 40
_FILE = "{}"


class FasterWhisper:
    """Whisper by the package faster-whisper, with a model that is on this machine.

    Args:
        model: folder of a converted model (``model.bin``, ``config.json``, ``tokenizer.json``, …).
        language: ISO 639-1 code of what is spoken (default: recognized for each recording).
        max_seconds: see :func:`.timed_texts`.

    Raises:
        ModuleNotFoundError: if faster-whisper is not installed.
        UserError: if the folder is no model.
    """

    kind: Kind = "transcript"
    name = "faster-whisper"
    modality: Modality = "audio"

    def __init__(self, model: Path, language: str | None = None, max_seconds: float = MAX_SEGMENT_SECONDS) -> None:
        import faster_whisper

        if not (model / "model.bin").is_file():
            raise UserError(f"--model {model}: no model.bin; name the folder of a Whisper model converted for CTranslate2")
        files = [file for file in sorted(model.iterdir()) if file.is_file()]
        spoken = f" language {language}" if language else ""
        try:
            release = version("faster-whisper")
        except PackageNotFoundError:
            release = str(getattr(faster_whisper, "__version__", "unknown"))
        self.identity = f"faster-whisper {release} model {model_hash(files)}{spoken} segment {max_seconds:g}"
        self._model = faster_whisper.WhisperModel(str(model), local_files_only=True)
        self._folder, self._language, self._max_seconds = model.absolute(), language, max_seconds

    def __reduce__(self) -> tuple[type["FasterWhisper"], tuple[Path, str | None, float]]:
        return FasterWhisper, (self._folder, self._language, self._max_seconds)

    def __call__(self, item: Item) -> Finding:
        """Return what is said in an item's recordings; see :class:`.Engine`."""
        return _timed((self._cues(audio) for audio in item.audio), self._max_seconds)

    def _cues(self, audio: bytes) -> list[Cue]:
        signal_T = np.concatenate([*_signal(audio), np.empty(0, np.float32)])
        try:
            segments, _ = self._model.transcribe(signal_T, language=self._language)
            cues = [(float(segment.start), float(segment.end), " ".join(str(segment.text).split())) for segment in segments]
        except (RuntimeError, ValueError) as error:  # those of CTranslate2
            raise EngineError(one_line(f"faster-whisper: {error}")) from None
        # It rounds times, which may put the end of a short segment before its start.
        return [Cue(max(start, 0.0), max(start, end, 0.0), text) for start, end, text in cues if text]


class TranscriptionCommand:
    """Any program that is given a WAV file (16 kHz, mono) and prints WebVTT, SRT or JSON of Whisper.

    Args:
        command: the program and its arguments as in a shell, ``{}`` in place of the file (default: at the end). No shell runs it.
        max_seconds: see :func:`.timed_texts`.
        timeout: seconds after which the program is stopped.
        scratch: folder for the WAV file (default: the system's for temporary files).

    Raises:
        UserError: if there is no such program.
    """

    kind: Kind = "transcript"
    name = "command"
    modality: Modality = "audio"

    def __init__(
        self,
        command: str,
        max_seconds: float = MAX_SEGMENT_SECONDS,
        timeout: float = TIMEOUT_SECONDS,
        scratch: Path | None = None,
    ) -> None:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"--command {command!r}: {error}") from None
        program = shutil.which(words[0]) if words else None
        if program is None:
            raise UserError(f"--command {command!r}: no such program")
        self._words = [program, *words[1:]] if any(_FILE in word for word in words) else [program, *words[1:], _FILE]
        self._max_seconds, self._timeout, self._scratch = max_seconds, timeout, scratch and scratch.absolute()
        # A program may be an interpreter, so that the files among its arguments count too.
        files = [path for word in self._words if (path := Path(word)).is_file()]
        self.identity = f"command {Path(program).name} model {model_hash(files)} segment {max_seconds:g}"

    def __call__(self, item: Item) -> Finding:
        """Return what is said in an item's recordings; see :class:`.Engine`."""
        return _timed((self._cues(audio) for audio in item.audio), self._max_seconds)

    def _cues(self, audio: bytes) -> list[Cue]:
        name = Path(self._words[0]).name
        with tempfile.TemporaryDirectory(prefix=".enriching-audio-", dir=self._scratch) as folder:
            file = Path(folder) / "audio.wav"
            with soundfile.SoundFile(file, "w", RATE, 1, subtype="PCM_16") as sound:
                for part_T in _signal(audio):
                    sound.write(part_T)
            command = [word.replace(_FILE, str(file)) for word in self._words]
            try:
                done = subprocess.run(command, capture_output=True, timeout=self._timeout, check=False, stdin=subprocess.DEVNULL)  # noqa: S603
            except subprocess.TimeoutExpired:
                raise EngineError(f"{name} ran for more than {self._timeout:g} s and was stopped") from None
            except OSError as error:
                raise EngineError(f"{name} cannot be run: {error.strerror}") from None
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise EngineError(one_line(f"{name} ended with status {done.returncode}: {last or '(nothing on standard error)'}"))
        try:
            return parse_transcript(done.stdout, f"output of {name}")
        except UserError as error:
            raise EngineError(one_line(str(error))) from None


def _timed(recordings: Iterator[Sequence[Cue]], max_seconds: float) -> Finding:
    """Return the texts of an item's recordings; each time is one within its recording."""
    parts = [timed_texts(cues, max_seconds) for cues in recordings]
    return Finding([text for texts, _ in parts for text in texts], [time for _, times in parts for time in times])


def _signal(audio: bytes) -> Iterator[NDArray[np.float32]]:
    """Yield a recording as mono at :data:`RATE` in blocks, as training decodes it."""
    for arrays, span in decode_audio(audio, 0, _NO_LIMIT, _BLOCKS):
        yield arrays["waveform"][: round((span.stop - span.start) * RATE)].astype(np.float32)
