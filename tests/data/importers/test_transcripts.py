"""Transcripts are read as they occur, and a file that is none is refused by line."""

import html
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_data.importers.transcripts import Cue, parse_transcript, timed_texts
from vigil_data.items import Item

PLAIN = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"])
WORDS = st.lists(st.text(PLAIN, min_size=1, max_size=8), min_size=1, max_size=6)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def cues(draw: st.DrawFn) -> list[Cue]:
    """Cues in order of time, which may overlap; each text begins with its number, so that no two begin alike."""
    drawn = draw(st.lists(st.tuples(st.integers(0, 400_000_000), st.integers(0, 99_999), WORDS), max_size=6))
    return [
        Cue(start / 1000, (start + length) / 1000, " ".join([f"c{number}", *words]))
        for number, (start, length, words) in enumerate(sorted(drawn, key=lambda cue: (cue[0], cue[0] + cue[1])))
    ]


def clock(seconds: float, mark: str, *, hours: bool = True) -> str:
    milliseconds = round(seconds * 1000)
    rest = f"{milliseconds // 60_000 % 60:02}:{milliseconds // 1000 % 60:02}{mark}{milliseconds % 1000:03}"
    return f"{milliseconds // 3_600_000:02}:{rest}" if hours or milliseconds >= 3_600_000 else rest


def broken_into_lines(text: str, draw: st.DrawFn, end: str) -> str:
    return "".join(draw(st.sampled_from([" ", end])) if letter == " " else letter for letter in text)


@settings(deadline=None)
@given(cues(), LINE_ENDS, st.data())
def test_parse_transcript_reads_back_webvtt(given: list[Cue], end: str, data: st.DataObject) -> None:
    noise = st.sampled_from(["", f"NOTE by hand{end}00:00.000 --> 00:01.000{end}no cue{end}{end}", f"NOTE{end}x{end}{end}"])
    file = f"WEBVTT - a title{end}Kind: captions{end}{end}STYLE{end}::cue {{ color: red }}{end}{end}"
    for cue in given:
        file += data.draw(noise) + data.draw(st.sampled_from(["", f"7{end}", f"name of a cue{end}"]))
        times = (clock(time, ".", hours=data.draw(st.booleans())) for time in cue[:2])
        file += " --> ".join(times) + data.draw(st.sampled_from(["", " align:start position:0%", "\tline:90%"])) + end
        escaped = broken_into_lines(html.escape(cue.text, quote=False), data.draw, end)
        file += data.draw(st.sampled_from(["{}", "<i>{}</i>", "<c.yellow.bg_blue>{}</c>", "<00:00:01.000>{}"])).format(escaped)
        file += end + end * data.draw(st.integers(1, 3))
    encoded = data.draw(st.sampled_from(["utf-8", "utf-8-sig"]))
    assert parse_transcript(file.encode(encoded), "a.vtt") == given


@settings(deadline=None)
@given(cues(), LINE_ENDS, st.data())
def test_parse_transcript_reads_back_srt(given: list[Cue], end: str, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(given))
    file = end * data.draw(st.integers(0, 2))
    for number, cue in enumerate(shuffled, 1):
        file += data.draw(st.sampled_from(["", f"{number}{end}", f" {number} {end}"]))
        file += " --> ".join(clock(time, data.draw(st.sampled_from(",."))) for time in cue[:2]) + end
        escaped = broken_into_lines(html.escape(cue.text, quote=False), data.draw, end)
        file += data.draw(st.sampled_from(["{}", "<i>{}</i>", '<font color="#fff">{}</font>', "{{\\an8}}{}"])).format(escaped)
        file += end + data.draw(st.sampled_from([end, f"  {end}", end + end]))
    assert parse_transcript(file.encode("utf-8-sig"), "a.srt") == sorted(shuffled, key=lambda cue: cue[:2])


@settings(deadline=None)
@given(cues(), st.booleans())
def test_parse_transcript_reads_back_whisper_json(given: list[Cue], whole: bool) -> None:
    segments = [{"id": 0, "start": cue.start, "end": cue.end, "text": f" {cue.text}\n"} for cue in given]
    document: Any = {"text": "…", "segments": segments, "language": "en"} if whole else segments
    assert parse_transcript(json.dumps(document).encode(), "a.json") == given


def test_parse_transcript_follows_the_examples_of_the_specification() -> None:
    """Voices, classes, languages, ruby, identifiers, settings, comments, a region, escapes (WebVTT, W3C, sections 1 and 4)."""
    file = """WEBVTT This file has cues.
X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000

REGION
id:fred
width:40%

STYLE
::cue(b) { color: peachpuff }

NOTE
one comment
-->  that is commented out

1 - title
00:11.000 --> 00:13.000 vertical:rl region:fred
<v Roger Bingham>We are in New York City

not a cue, and not shown

00:13.000 --> 100:00:16.000
<v.first.loud Neil>Hello</v> <c.red><lang en>there</lang></c>
<v Anna>1 &lt; 2 &amp;&nbsp;<ruby>漢<rt>kan</rt></ruby> I <3 you

00:17.000 --> 00:17.000
&lt;b&gt;literal&lt;/b&gt;
"""
    assert parse_transcript(file.encode(), "a.vtt") == [
        Cue(11, 13, "We are in New York City", "Roger Bingham"),
        Cue(13, 360_016, "Hello there", "Neil"),
        Cue(13, 360_016, "1 < 2 & 漢kan I <3 you", "Anna"),
        Cue(17, 17, "<b>literal</b>"),
    ]


@pytest.mark.parametrize(
    ("file", "texts"),
    [
        ("", []),
        ("WEBVTT", []),
        ("WEBVTT\n00:01.000 --> 00:02.000\nno empty line after the header", ["no empty line after the header"]),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\n\n00:03.000 --> 00:04.000\nthe first is empty", ["the first is empty"]),
        ("WEBVTT\n\n00:01.000-->00:02.000\nno spaces", ["no spaces"]),
        ("1\n00:00:01,000 --> 00:00:02,000\na\n2\n00:00:03,000 --> 00:00:04,000\nno empty line", ["a", "no empty line"]),
        ("0:0:1 --> 0:0:2\na\n\nb after an empty line\n\n2\n0:0:3 --> 0:0:4\n10", ["a b after an empty line", "10"]),
        ("1\n00:00:01,000 --> 00:00:02,000 X1:1 X2:2 Y1:3 Y2:4\npress --> to go on", ["press --> to go on"]),
        ("1\n0:00:01 --> 0:00:02\nno fraction", ["no fraction"]),
        ("00:00:01,5 --> 00:00:02,25\nno number", ["no number"]),
        ("1\n00:00:01,000 --> 00:00:02,000\n<i></i>{\\an8}\n", []),
    ],
)  # fmt: skip
def test_parse_transcript_reads_what_occurs(file: str, texts: list[str]) -> None:
    assert [cue.text for cue in parse_transcript(file.encode(), "a")] == texts


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"WEBVTT\n\n00:01.000 --> 00:99.000\na", "a:3: 00:99.000 is not a time such as 00:01:02.500 (hours may be left out)"),
        (b"WEBVTT\n\nx\n00:01.000 -->\na", "a:4: 00:01.000 --> is not a time range such as 00:01:02.500 --> "),
        (b"1\n0:0:2,000 --> 0:0:1,000\na", "a:2: the cue starts at 0:0:2,000 and ends before that, at 0:0:1,000"),
        (b"1\n-1:00:02,000 --> 00:00:01,000\na", "a:2: -1:00:02,000 is not a time such as 00:01:02.500 (hours"),
        (b"0:0:1 --> 999:00:00\na", "a:1: 999:00:00 is after 1,000,000 seconds"),
        (b"\nDear diary\n", "a:2: text before the first time; a transcript is WebVTT, SRT or JSON of Whisper"),
        (b"WEBVTT\n\n\xe9", "a:3: not UTF-8; save it as UTF-8"),
        ("WEBVTT".encode("utf-16"), "a:1: UTF-16, not UTF-8; save it as UTF-8"),
        (b'{"segments": [\n{]}', "a:2: not JSON (Expecting property name enclosed in double quotes)"),
        (b"[" * 100_000, "a:1: JSON that is nested too deeply"),
        (b'{"text": "a"}', "a:1: JSON without a list of segments, which Whisper and WhisperX write"),
        (b"[1]", "a: segments[0]: 1, not an object with start, end and text"),
        (b'[{"start": 0, "end": 1}]', "a: segments[0].text: None, not a string"),
        (b'[{"start": 0, "end": 1, "text": "", "speaker": 3}]', "a: segments[0].speaker: 3, not a string"),
        (b'[{"start": NaN, "end": 1, "text": "x"}]', "a: segments[0].start: nan, not seconds from 0 to 1,000,000"),
        (b'[{"start": true, "end": 1, "text": "x"}]', "a: segments[0].start: True, not seconds from 0 to 1,000,000"),
        (b'[{"start": 2, "end": 1.5, "text": "x"}]', "a: segments[0]: starts at 2 and ends before that, at 1.5"),
    ],
)  # fmt: skip
def test_parse_transcript_refuses_by_line(file: bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_transcript(file, "a")
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith(message)


@settings(deadline=None)
@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([b"WEBVTT", b"\n", b" ", b"1", b"00:01.000", b" --> ", b"a<b", b"NOTE", b"{}", b"&#xD800;"])).map(
        b"".join
    )
)
def test_parse_transcript_gives_valid_segments_of_any_bytes_or_refuses(data: bytes) -> None:
    try:
        texts, times = timed_texts(parse_transcript(data, "a"), 0)
    except UserError as refused:
        named = str(refused).startswith("a:")
        assert named
    else:
        assert all(texts)
        assert Item("1").with_texts(texts, "transcript", times).times == tuple(times)


@settings(deadline=None)
@given(st.lists(WORDS.map(" ".join), min_size=3, max_size=12), st.integers(2, 3), st.booleans())
def test_parse_transcript_keeps_each_line_of_rolling_captions_once(lines: list[str], shown: int, youtube: bool) -> None:
    assume(all(before != after for before, after in pairwise(lines)))
    file = "WEBVTT\n\n"
    for number, line in enumerate(lines):
        before = lines[max(0, number - shown + 1) : number]
        window = "\n".join(html.escape(text, quote=False) for text in [*before, line])
        file += f"{clock(number, '.')} --> {clock(number + 1, '.')} align:start\n{window}\n\n"
        if youtube:  # the line again by itself, for a hundredth of a second
            again = "\n".join(html.escape(text, quote=False) for text in [*before, line][-(shown - 1) :])
            file += f"{clock(number + 1, '.')} --> {clock(number + 1, '.')}\n{again}\n \n\n"
    parsed = parse_transcript(file.encode(), "a.vtt")
    assert [(cue.start, cue.text) for cue in parsed] == list(enumerate(lines))


def test_parse_transcript_keeps_what_is_said_twice() -> None:
    said = ["no", "no", "no", "yes", "oh no"]
    file = "\n\n".join(f"{clock(n, ',')} --> {clock(n + 1, ',')}\n{text}" for n, text in enumerate(said))
    assert [cue.text for cue in parse_transcript(file.encode(), "a.srt")] == said


def test_parse_transcript_keeps_speakers_of_whisperx() -> None:
    words = [{"word": "hello", "start": 0.1, "end": 0.4, "score": 0.9, "speaker": "SPEAKER_01"}, {"word": "7"}]
    segments = [
        {"start": 0.1, "end": 2, "text": " hello", "words": words, "speaker": "SPEAKER_01"},
        {"start": 2.5, "end": 3, "text": "again", "speaker": "SPEAKER_01"},
        {"start": 3, "end": 4, "text": "good day", "speaker": "SPEAKER_00"},
        {"start": 4, "end": 5, "text": "  "},
    ]
    parsed = parse_transcript(json.dumps({"segments": segments, "word_segments": words}).encode(), "a.json")
    assert timed_texts(parsed) == (["hello again good day"], [(0.1, 4.0)])
    assert timed_texts(parsed, speakers=True) == (
        ["SPEAKER_01: hello again", "SPEAKER_00: good day"],
        [(0.1, 3.0), (3.0, 4.0)],
    )


@settings(deadline=None)
@given(cues(), st.floats(0, 100_000))
def test_timed_texts_merges_up_to_the_limit_and_loses_nothing(given: list[Cue], seconds: float) -> None:
    texts, times = timed_texts(given, seconds)
    assert " ".join(texts) == " ".join(cue.text for cue in given)
    starts, ends = {cue.start for cue in given}, {cue.end for cue in given}
    assert all(start in starts and end in ends for start, end in times)
    number = 0
    for text, (start, end) in zip(texts, times, strict=True):
        own = [number]
        while " ".join(given[n].text for n in own) != text:
            own.append(own[-1] + 1)
        number = own[-1] + 1
        assert (start, end) == (given[own[0]].start, max(given[n].end for n in own))
        assert len(own) == 1 or end - start <= seconds
    assert number == len(given)


def test_timed_texts_keeps_cues_apart_with_zero_seconds() -> None:
    given = [Cue(0, 1, "a"), Cue(1, 2, "b")]
    assert timed_texts(given, 0) == (["a", "b"], [(0, 1), (1, 2)])
    assert timed_texts(given) == (["a b"], [(0, 2)])
