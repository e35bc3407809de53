"""Media of a suite's items: files, text drawn as images, drawings, and spoken text."""

import io
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from vigil_data.augmentation.image import wrapped
from vigil_data.errors import UserError
from vigil_data.media_files import MediaFolder
from vigil_data.suites.specs import Picture, Sound

if TYPE_CHECKING:
    from PIL import ImageFont

    from vigil_data.demo.speech import Sound as Spoken

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WIDTH = 420
"""Maximum line width in pixels."""
_MARGIN = 24
_SIZE = 28
_PAPERS = ("#ffffff", "#f6f1e4", "#e8f0fb", "#fdf3d6", "#eef7ee")
_INKS = ("#111111", "#1b2a4a", "#4a1b1b", "#16351f")


def written(text: str, rng: Random, font: bytes | None = None) -> bytes:
    """Draw text as a PNG image, dark on light, with line breaks.

    Args:
        text: the text.
        rng: generator of the colours, which are independent of the text.
        font: content of a TrueType or OpenType file (default: Pillow's font).

    Raises:
        UserError: if the font cannot be read or lacks one of the characters.
    """
    from PIL import Image, ImageDraw

    face = _font(font)
    if unknown := _missing_glyphs(text, face):
        what = "the font" if font else "the built-in font"
        raise UserError(f"{what} lacks {', '.join(map(repr, unknown))}; set `font` to a font that has them")
    lines = wrapped(text, face, WIDTH)
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), lines, font=face)
    size = (round(box[2] - box[0]) + 2 * _MARGIN, round(box[3] - box[1]) + 2 * _MARGIN)
    image = Image.new("RGB", size, rng.choice(_PAPERS))
    ImageDraw.Draw(image).multiline_text((_MARGIN - box[0], _MARGIN - box[1]), lines, font=face, fill=rng.choice(_INKS))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _font(data: bytes | None) -> "Font":
    from PIL import ImageFont

    if data is None:
        return ImageFont.load_default(_SIZE)
    try:
        return ImageFont.truetype(io.BytesIO(data), _SIZE)
    except OSError as error:
        raise UserError(f"the suite's font is not a readable font: {error}") from None


def _missing_glyphs(text: str, face: "Font") -> list[str]:
    """Return the characters that the font draws as its glyph for missing characters."""
    missing = _glyph(face, "\U0010ffff")
    return [letter for letter in dict.fromkeys(text) if not letter.isspace() and _glyph(face, letter) == missing]


def _glyph(face: "Font", letter: str) -> tuple[Any, bytes]:
    mask = face.getmask(letter)
    return mask.size, bytes(mask)


def picture_bytes(picture: Picture, folder: MediaFolder, font: bytes | None, rng: Random) -> bytes:
    """Return an encoded image.

    Raises:
        UserError: if a file cannot be read or text cannot be drawn.
    """
    if picture.file is not None:
        return folder.read(picture.file)
    if picture.draw is not None:
        from vigil_data.demo.pictures import draw
        from vigil_data.demo.scenarios import styles_of

        return draw(picture.draw, rng.choice(styles_of("test")), rng, forbidden=picture.forbidden)
    return written(picture.text or "", rng, font)


def sound_bytes(sound: Sound, folder: MediaFolder, spoken: "Mapping[str, Spoken]", rng: Random) -> bytes:
    """Return an encoded audio file.

    Args:
        sound: its description.
        folder: folder that its file is relative to.
        spoken: result of :func:`speak`.
        rng: generator of voice and background, which are independent of the words.

    Raises:
        UserError: if a file cannot be read.
    """
    if sound.say is None:
        return folder.read(sound.file or "")
    from vigil_data.demo.speech import record

    return record(spoken[sound.say], rng)


def speak(sounds: Sequence[Sound], progress: Callable[[int, int], None] | None = None) -> "dict[str, Spoken]":
    """Synthesize every sentence of ``sounds`` once.

    Raises:
        UserError: if the speech synthesizer is not installed.
    """
    sentences = sorted({sound.say for sound in sounds if sound.say is not None})
    if not sentences:
        return {}
    from importlib.util import find_spec

    if find_spec("hibari") is None:
        raise UserError(f"`say` ({len(sentences)} sentences) needs the speech synthesizer hibari-tts: pip install 'vigil[demo]'")
    from vigil_data.demo.speech import synthesise

    return synthesise(sentences, progress)
