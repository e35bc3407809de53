"""Augmentation of decoded images: text over them, and recompression."""

import io
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vigil_data.augmentation.specs import ImageAugmentation

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Pixels = NDArray[np.uint8]


def augment_pixels(pixels_CHW: Pixels, spec: ImageAugmentation, rng: Random) -> Pixels:
    """Return an image with text over it and recompressed, each with its probability.

    Args:
        pixels_CHW: uint8 RGB ``[3, H, W]``.
        spec: what to apply; RandAugment is applied before (:mod:`vigil_data.augmentation.rand_augment`).
        rng: generator of all choices.
    """
    if spec.overlay is not None and rng.random() < spec.overlay.probability:
        pixels_CHW = overlay_text(pixels_CHW, rng.choice(spec.overlay.texts), rng)
    if spec.jpeg is not None and rng.random() < spec.jpeg.probability:
        pixels_CHW = recompress(pixels_CHW, rng.randint(*spec.jpeg.quality))
    return pixels_CHW


def overlay_text(pixels_CHW: Pixels, text: str, rng: Random) -> Pixels:
    """Return the image with a text of random size, place and colour over it, wrapped to the image's width."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
    face = ImageFont.load_default(max(6.0, image.height * rng.uniform(0.07, 0.18)))
    lines = wrapped(text, face, round(0.9 * image.width))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.multiline_textbbox((0, 0), lines, font=face)
    place = (rng.uniform(0, max(0, image.width - right + left)) - left, rng.uniform(0, max(0, image.height - bottom + top)) - top)
    ink, edge = rng.choice((("white", "black"), ("black", "white"), ("yellow", "black"), ("red", "white")))
    draw.multiline_text(place, lines, font=face, fill=ink, stroke_fill=edge, stroke_width=1)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def recompress(pixels_CHW: Pixels, quality: int) -> Pixels:
    """Return the image after JPEG compression."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0))).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as image:
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def wrapped(text: str, face: "Font", width: float) -> str:
    """Break text into lines of at most ``width`` pixels; a longer word has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and face.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
