r"""Transcripts: WebVTT, SRT and the JSON of Whisper and WhisperX become timed texts of an item.

Files are read as they occur: with byte order marks, any line ends, identifiers, settings, comments, styles, tags, HTML entities,
a comma or a dot before the fraction, hours left out, and cues that are empty, overlap or are out of order. Captions that roll
(each cue repeats the lines before it, as on YouTube) keep each line once.

Example:
    >>> cues = parse_transcript(b"WEBVTT\n\n00:12.500 --> 00:17.000\n<v Anna>Welcome &amp; hello</v>\n", "ep.vtt")
    >>> timed_texts(cues)
    (['Welcome & hello'], [(12.5, 17.0)])
"""

import html
import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from vigil_data.errors import UserError, one_line
from vigil_data.items import MAX_SECONDS, Time
from vigil_data.media_files import megabytes

MAX_TRANSCRIPT_BYTES = 64_000_000
"""Size of a transcript above which it is an error: a day of speech with the time of every word has about 20 MB."""

MAX_SEGMENT_SECONDS = 30.0
"""Default length up to which cues are merged; 30 seconds of speech are about 100 tokens, one passage of an encoder."""

MAX_ROLLING_PAUSE_SECONDS = 0.5
"""Longest pause between two cues of captions that roll."""

_RANGE = re.compile(r"\s*(\S+?)\s*-->\s*(\S+)(?:\s.*)?")
_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?", re.ASCII)
_RANGE_IN_TEXT = re.compile(r"[\s\d:.,-]+-->")
_COMMENT = re.compile(r"NOTE(?:[ \t].*)?|(?:STYLE|REGION)[ \t]*")
_TAG = re.compile(
    r"</?(?:c|i|b|u|s|v|ruby|rt|lang|font)?(?:[.\s][^<>]*)?>"  # WebVTT's and SRT's tags; <3 and other text stays
    r"|<\d[\d:.]*>"  # times within a cue
    r"|\{\\[^{}]*\}",  # SubStation Alpha's overrides, which SRT files have
    re.IGNORECASE,
)
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?[ \t]+([^<>]*)>", re.IGNORECASE)
_Line = TypeVar("_Line")


class Cue(NamedTuple):
    """A passage of speech.

    Attributes:
        start: seconds from the start of the recording.
        end: seconds from the start of the recording, at least ``start``.
        text: what is said, on one line; never empty.
        speaker: who says it, if the transcript names one.
    """

    start: float
    end: float
    text: str
    speaker: str | None = None


class _Block(NamedTuple):
    """A cue whose lines are separate."""

    start: float
    end: float
    lines: list[str]
    speaker: str | None


def parse_transcript(data: bytes, name: str) -> list[Cue]:
    """Return the cues of a transcript, in order of time; cues without text are left out.

    The format is recognized from the content: JSON starts with a brace or bracket, WebVTT with ``WEBVTT``, and all else is SRT.

    Args:
        data: content of the file, UTF-8.
        name: its name, for messages.

    Raises:
        UserError: if it is not a transcript; the message is ``FILE:LINE: reason``.
    """
    if len(data) > MAX_TRANSCRIPT_BYTES:
        raise UserError(f"{name}: {megabytes(len(data))}, more than {megabytes(MAX_TRANSCRIPT_BYTES)}; split it")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{name}:1: UTF-16, not UTF-8; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}:{data[: error.start].count(10) + 1}: not UTF-8; save it as UTF-8") from None
    if text.lstrip()[:1] in ("{", "["):
        return _sorted(_json_cues(text, name))
    blocks = _blocks(re.split(r"\r\n|\n|\r", text), name)
    blocks.sort(key=lambda block: block[:2])
    cues = (Cue(block.start, block.end, " ".join(block.lines), block.speaker) for block in _without_rolled(blocks) if block.lines)
    return list(cues)


def timed_texts(
    cues: Iterable[Cue], max_seconds: float = MAX_SEGMENT_SECONDS, *, speakers: bool = False
) -> tuple[list[str], list[Time]]:
    """Return the texts of a transcript and their times.

    An encoder reads each text by itself and adds special tokens to it, and an item has a limited number of passages, so that
    cues of a few words each are merged.

    Args:
        cues: in order of time.
        max_seconds: merge neighbouring cues up to this length in seconds; 0 keeps each by itself.
        speakers: write the speaker's name before the text, as ``Anna: hello``; cues of different speakers are not merged then.
    """
    merged: list[Cue] = []
    for cue in cues if speakers else (cue._replace(speaker=None) for cue in cues):
        last = merged[-1] if merged else None
        if last and last.speaker == cue.speaker and max(last.end, cue.end) - last.start <= max_seconds:
            merged[-1] = last._replace(end=max(last.end, cue.end), text=f"{last.text} {cue.text}")
        else:
            merged.append(cue)
    texts = [f"{cue.speaker}: {cue.text}" if cue.speaker else cue.text for cue in merged]
    return texts, [(cue.start, cue.end) for cue in merged]


def _blocks(lines: Sequence[str], name: str) -> list[_Block]:
    """Parse WebVTT or SRT; WebVTT as its specification says (W3C, section 6.1), but a wrong time is an error.

    In SRT, text after an empty line belongs to the cue before it.
    """
    webvtt = re.fullmatch(r"WEBVTT(?:[ \t].*)?", lines[0]) is not None
    blocks: list[_Block] = []
    payload: list[tuple[int, str]] | None = None
    times = (0.0, 0.0)
    within, comment = webvtt, False  # within a block (the header is the first); within a comment, style or region
    for number, line in enumerate([*lines, ""], 1):
        if not (line if webvtt else line.strip()):
            within = comment = False
            if payload is not None and webvtt:
                blocks += _cleaned(times, payload)
                payload = None
        elif "-->" in line and not comment and (payload is None or not within or _RANGE_IN_TEXT.match(line)):
            if payload is not None:
                if payload and payload[-1][0] == number - 1 and payload[-1][1].strip().isdecimal():
                    payload.pop()  # the number of this cue
                blocks += _cleaned(times, payload)
            times, payload, within = _times(line, f"{name}:{number}"), [], True
        elif payload is not None:
            payload.append((number, line))
            within = True
        elif webvtt:
            comment = comment or (not within and _COMMENT.fullmatch(line) is not None)
            within = True
        elif not line.strip().isdecimal():
            hint = "a transcript is WebVTT, SRT or JSON of Whisper, and a cue begins with 00:01:02.500 --> 00:01:05.000"
            raise UserError(f"{name}:{number}: text before the first time; {hint}")
    return blocks if payload is None else [*blocks, *_cleaned(times, payload)]


def _times(line: str, position: str) -> Time:
    """Read the first line of a cue."""
    found = _RANGE.fullmatch(line)
    if found is None:
        raise UserError(f"{position}: {_shown(line)} is not a time range such as 00:01:02.500 --> 00:01:05.000")
    start, end = (_seconds(part, position) for part in found.groups())
    if start > end:
        raise UserError(f"{position}: the cue starts at {found[1]} and ends before that, at {found[2]}")
    return start, end


def _seconds(time: str, position: str) -> float:
    found = _TIME.fullmatch(time)
    if found is None or int(found[2]) > 59 or int(found[3]) > 59:
        raise UserError(f"{position}: {_shown(time)} is not a time such as 00:01:02.500 (hours may be left out)")
    # Whole numbers are exact, and so is the nearest float of their quotient.
    scale: int = 10 ** len(found[4] or "")
    seconds = ((int(found[1] or 0) * 60 + int(found[2])) * 60 + int(found[3])) * scale + int(found[4] or 0)
    if seconds > MAX_SECONDS * scale:
        raise UserError(f"{position}: {_shown(time)} is after {MAX_SECONDS:,.0f} seconds")
    return float(seconds / scale)


def _cleaned(times: Time, payload: Sequence[tuple[int, str]]) -> list[_Block]:
    """Return the text of a cue without markup, one block for each speaker."""
    # The parts between voice tags: text, speaker, text, speaker, text.
    parts = _VOICE.split("\n".join(line for _, line in payload))
    blocks = []
    for speaker, part in zip([None, *parts[1::2]], parts[::2], strict=True):
        lines = [" ".join(html.unescape(_TAG.sub("", line)).split()) for line in part.split("\n")]
        name = " ".join(html.unescape(speaker).split()) if speaker else None
        blocks.append(_Block(*times, [line for line in lines if line], name or None))
    return blocks if len(blocks) == 1 else [block for block in blocks if block.lines]


def _without_rolled(blocks: Sequence[_Block]) -> list[_Block]:
    """Remove the lines that each cue repeats from the one before it, if the captions roll.

    They do if most cues begin with the last lines of the one before, and some of them go on; a word that is said twice does not
    make them roll.
    """
    filled = [block for block in blocks if block.lines]
    repeated = [
        _overlap(before.lines, after.lines) if after.start - before.end <= MAX_ROLLING_PAUSE_SECONDS else 0
        for before, after in pairwise(filled)
    ]
    goes_on = any(0 < count < len(block.lines) for count, block in zip(repeated, filled[1:], strict=True))
    if not goes_on or 2 * sum(count > 0 for count in repeated) < len(repeated):
        return filled
    return [block._replace(lines=block.lines[count:]) for count, block in zip([0, *repeated], filled, strict=True)]


def _overlap(before: Sequence[_Line], after: Sequence[_Line]) -> int:
    """Return the largest number of items that end ``before`` and begin ``after``."""
    counts = range(min(len(before), len(after)), 0, -1)
    return next((count for count in counts if before[len(before) - count :] == after[:count]), 0)


def _json_cues(text: str, name: str) -> list[Cue]:
    """Parse JSON of Whisper or WhisperX: an object with ``segments``, or their list."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}:{error.lineno}: not JSON ({error.msg})") from None
    except (RecursionError, ValueError):  # the latter for a number of thousands of digits
        raise UserError(f"{name}:1: JSON that is nested too deeply, or has a number that is too long") from None
    segments = document.get("segments") if isinstance(document, dict) else document
    if not isinstance(segments, list):
        raise UserError(f"{name}:1: JSON without a list of segments, which Whisper and WhisperX write")
    return [cue for index, segment in enumerate(segments) if (cue := _json_cue(segment, f"{name}: segments[{index}]")).text]


def _json_cue(segment: Any, position: str) -> Cue:
    if not isinstance(segment, dict):
        raise UserError(f"{position}: {_shown(repr(segment))}, not an object with start, end and text")
    text, speaker = segment.get("text"), segment.get("speaker")
    if not isinstance(text, str):
        raise UserError(f"{position}.text: {_shown(repr(text))}, not a string")
    if not isinstance(speaker, str | None):
        raise UserError(f"{position}.speaker: {_shown(repr(speaker))}, not a string")
    times = []
    for side in ("start", "end"):
        value = segment.get(side)
        # NaN is not in the range either.
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_SECONDS:
            raise UserError(f"{position}.{side}: {_shown(repr(value))}, not seconds from 0 to {MAX_SECONDS:,.0f}")
        times.append(float(value))
    if times[0] > times[1]:
        raise UserError(f"{position}: starts at {times[0]:g} and ends before that, at {times[1]:g}")
    return Cue(times[0], times[1], " ".join(text.split()), " ".join((speaker or "").split()) or None)


def _sorted(cues: list[Cue]) -> list[Cue]:
    return sorted(cues, key=lambda cue: cue[:2])


def _shown(text: str) -> str:
    return one_line(text if len(text) <= 40 else f"{text[:37]}…")
