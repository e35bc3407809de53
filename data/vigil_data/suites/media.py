"""The media of a suite's items: files as they are, words written as pictures, drawings, and words spoken."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from vigil_data.errors import UserError
from vigil_data.suites.specs import Picture, Sound

if TYPE_CHECKING:
    from PIL import ImageFont

    from vigil_data.demo.speech import Sound as Spoken

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WIDTH = 420
"""Pixels within which words are broken into lines."""
_MARGIN = 24
_SIZE = 28
_PAPERS = ("#ffffff", "#f6f1e4", "#e8f0fb", "#fdf3d6", "#eef7ee")
_INKS = ("#111111", "#1b2a4a", "#4a1b1b", "#16351f")


def written(text: str, rng: Random, font: Path | None = None) -> bytes:
    """Words as a picture, dark on light, in lines as wide as they fit.

    Args:
        text: the words.
        rng: decides the colours, which say nothing of the words.
        font: a TrueType or OpenType file; Pillow's own font if not given.

    Returns:
        A PNG.

    Raises:
        UserError: if the font cannot be read, or has no form for one of the letters.
    """
    from PIL import Image, ImageDraw

    face = _font(font)
    if unknown := _without_form(text, face):
        what = "the font" if font else "the built-in font"
        raise UserError(f"{what} cannot write {', '.join(map(repr, unknown))}; name a font that can as `font`")
    lines = _lines(text, face)
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), lines, font=face)
    size = (round(box[2] - box[0]) + 2 * _MARGIN, round(box[3] - box[1]) + 2 * _MARGIN)
    image = Image.new("RGB", size, rng.choice(_PAPERS))
    ImageDraw.Draw(image).multiline_text((_MARGIN - box[0], _MARGIN - box[1]), lines, font=face, fill=rng.choice(_INKS))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _font(path: Path | None) -> "Font":
    from PIL import ImageFont

    if path is None:
        return ImageFont.load_default(_SIZE)
    try:
        return ImageFont.truetype(str(path), _SIZE)
    except OSError as error:
        raise UserError(f"{path} is not a font that can be read: {error}") from None


def _without_form(text: str, face: "Font") -> list[str]:
    """The letters that the font draws as its sign for what it does not have."""
    nothing = _form(face, "\U0010ffff")
    return [letter for letter in dict.fromkeys(text) if not letter.isspace() and _form(face, letter) == nothing]


def _form(face: "Font", letter: str) -> tuple[Any, bytes]:
    mask = face.getmask(letter)
    return mask.size, bytes(mask)


def _lines(text: str, face: "Font") -> str:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and face.getlength(longer) <= WIDTH:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def picture_bytes(picture: Picture, folder: Path, font: Path | None, rng: Random) -> bytes:
    """An encoded picture.

    Raises:
        UserError: a file cannot be read, or words cannot be written.
    """
    if picture.file is not None:
        return read_file(folder / picture.file)
    if picture.draw is not None:
        from vigil_data.demo.pictures import draw
        from vigil_data.demo.scenarios import styles_of

        return draw(picture.draw, rng.choice(styles_of("test")), rng, forbidden=picture.forbidden)
    return written(picture.text or "", rng, font)


def sound_bytes(sound: Sound, folder: Path, spoken: "Mapping[str, Spoken]", rng: Random) -> bytes:
    """An encoded sound.

    Args:
        sound: what it is.
        folder: to which its file is relative.
        spoken: of :func:`speak`.
        rng: decides voice and background, which say nothing of the words.

    Raises:
        UserError: a file cannot be read.
    """
    if sound.say is None:
        return read_file(folder / (sound.file or ""))
    from vigil_data.demo.speech import record

    return record(spoken[sound.say], rng)


def speak(sounds: Sequence[Sound], progress: Callable[[int, int], None] | None = None) -> "dict[str, Spoken]":
    """Speak what is to be said, each sentence once.

    Raises:
        UserError: if the voice is not installed.
    """
    sentences = sorted({sound.say for sound in sounds if sound.say is not None})
    if not sentences:
        return {}
    from importlib.util import find_spec

    if find_spec("hibari") is None:
        raise UserError(
            f"{len(sentences)} sentences are to be spoken (say), which needs the voice hibari-tts: pip install 'vigil[demo]'"
        )
    from vigil_data.demo.speech import synthesise

    return synthesise(sentences, progress)


def read_file(file: Path) -> bytes:
    """A medium's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
