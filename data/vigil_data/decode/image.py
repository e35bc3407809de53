"""Decoding of image files into uint8 RGB at the model's size."""

import io
import logging
import re
import struct
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vigil_data.decode.suppress_stderr import silenced
from vigil_data.errors import MediaError, TooLargeError
from vigil_data.loading.packing import Segment, Span
from vigil_data.settings import ImageSettings

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened. Pillow has more; some call other programs (EPS), and people post none of them."""

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it logs errors of damaged files, whose reason is in the MediaError

_EXPANDED_PIXELS = 2**24
_PIXELS_PER_BYTE = (
    10_000  # Above those of a blank PNG, GIF or JPEG; blank WebP, AVIF and JPEG 2000 files state any size in some bytes.
)
_SCANS, _SCANNED_PIXELS = 20, 10**9  # A progressive JPEG has about ten scans, and each passes over all pixels.
_ANIMATED_PIXELS = 10**9  # of all frames
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # within a scan 0xFF is followed by 0, or by the number of a restart

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the transpose that turns the image upright (EXIF 2.32, section 4.6.4)."""


def size_of(data: bytes) -> tuple[int, int]:
    """Return an image's width and height in pixels from its header, without decoding.

    Raises:
        MediaError: if it is empty, of an unknown format, or its header is damaged or states an excessive size.
    """
    with _opened(data) as image:
        return image.size


def read_image(data: bytes, max_pixels: int, max_frames: int) -> str:
    """Decode all frames of an image completely, and return its format.

    Args:
        data: an encoded image.
        max_pixels: maximum number of pixels of a frame.
        max_frames: maximum number of frames.

    Raises:
        TooLargeError: if it exceeds a limit.
        MediaError: if a frame cannot be decoded completely.
    """
    with _opened(data) as image:
        frames = int(getattr(image, "n_frames", 1))
        if frames > max_frames:
            raise TooLargeError(f"an image of more than {max_frames:,} frames")
        if frames * image.width * image.height > _ANIMATED_PIXELS:
            raise TooLargeError(f"an image of {frames:,} frames of {image.width} x {image.height} pixels (decompression bomb)")
        for frame in range(frames):
            image.seek(frame)
            _check_pixels(image, max_pixels)
            image.load()
        _rgb_or_grey(image, 255)
        return str(image.format)


def decode_image(data: bytes, index: int, limit: int, spec: ImageSettings) -> Generator[Segment, None, int]:
    """Decode one image, or the first frame of an animation, to the model's size.

    Args:
        data: an encoded image.
        index: position among the item's images, for the span.
        limit: 0 omits the image without reading it.
        spec: size, fit and background.

    Yields:
        One segment (``pixels`` uint8 ``[3, H, W]``).

    Returns:
        The number of omitted images: 0 or 1.

    Raises:
        MediaError: if the image cannot be decoded completely, or has more than ``spec.max_pixels``.
    """
    if limit < 1:
        return 1
    with _opened(data) as image:
        _check_pixels(image, spec.max_pixels)
        _draft(image, spec)
        image.load()
        upright = _rgb_or_grey(_upright(image), spec.background)
        fitted = _fit(upright, spec)
        rgb = fitted if fitted.mode == "RGB" else fitted.convert("RGB")  # a conversion to the same mode would copy it
        pixels_CHW = np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))
    yield {"pixels": pixels_CHW}, Span(index)
    return 0


def decode_picture(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Return an image, or the first frame of an animation, upright and at its own size.

    Args:
        data: an encoded image.
        max_pixels: number of pixels above which it is refused.

    Returns:
        uint8 ``[H, W, 3]``, red first; transparent pixels are white.

    Raises:
        MediaError: if the image cannot be decoded completely, or has more than ``max_pixels``.
    """
    with _opened(data) as image:
        _check_pixels(image, max_pixels)
        _check_work(image, data)
        image.load()
        return np.array(_rgb_or_grey(_upright(image), background=255).convert("RGB"))


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image; every error or warning of Pillow, here or in the block, becomes a MediaError of one line."""
    if not data:
        raise MediaError("the file is empty")
    kind = None
    # libtiff prints its errors to standard error; Pillow's own are Python warnings.
    with warnings.catch_warnings(), silenced() if data[:2] in (b"II", b"MM") else nullcontext():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                kind = image.format
                if min(image.size) < 1:
                    raise MediaError(f"a {kind} file of {image.width} x {image.height} pixels")
                _check_work(image, data)
                yield image
        except MediaError:
            raise
        except UnidentifiedImageError:
            raise MediaError("not an image of a supported format, or its header is truncated") from None
        except Image.DecompressionBombError:
            raise TooLargeError("the header states too many pixels (decompression bomb)") from None
        except Exception as error:  # Pillow's plugins raise almost anything for malformed bytes
            raise (TooLargeError if isinstance(error, MemoryError) else MediaError)(_reason(kind, error)) from None


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise TooLargeError(f"an image of {image.width} x {image.height} pixels, more than max_pixels {max_pixels}")


def _check_work(image: Image.Image, data: bytes) -> None:
    """Refuse a small file that takes seconds to decode."""
    pixels = image.width * image.height
    if pixels > _EXPANDED_PIXELS and pixels > _PIXELS_PER_BYTE * len(data):
        size = f"{image.width} x {image.height} pixels in {len(data):,} bytes"
        raise TooLargeError(f"a {image.format} file of {size} (decompression bomb)")
    if image.format not in ("JPEG", "MPO") or data.count(b"\xff\xda") <= _SCANS:
        return
    if (scans := _scans(data)) > _SCANS and scans * pixels > _SCANNED_PIXELS:
        raise TooLargeError(f"a JPEG file of {image.width} x {image.height} pixels in {scans:,} scans (decompression bomb)")


def _scans(data: bytes) -> int:
    """Return the number of scans of a JPEG file's first image (ITU-T T.81, annex B)."""
    scans, place = 0, 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xD9:
        is_scan = data[place + 1] == 0xDA
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if is_scan:
            scans += 1
            end = _SCAN_END.search(data, place)
            place = len(data) if end is None else end.start()
    return scans


def _reason(kind: str | None, error: Exception) -> str:
    if kind is None:
        return "the image's header is damaged or truncated"
    if isinstance(error, MemoryError):
        return f"the {kind} file needs more memory than is available"
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return f"the {kind} file is truncated"
    return f"the {kind} file is damaged"


def _draft(image: Image.Image, spec: ImageSettings) -> None:
    """Let the JPEG decoder skip detail that resizing would discard; other formats ignore it."""
    # Twice the wanted size, so that the resize filter still gets more detail than it keeps.
    short, long = sorted(image.size)
    scale = 2 * spec.size / (long if spec.fit == "pad" else short)
    if scale < 1:
        image.draft(None, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):
        return image  # viewers also show an image with broken EXIF unrotated
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb_or_grey(image: Image.Image, background: int) -> Image.Image:
    """Return the image in mode RGB, or L if it is grey: it is resized before it gets three equal channels."""
    if image.mode.startswith("I;16"):
        grey_HW = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(grey_HW)
    if image.mode in ("I", "F"):
        return Image.fromarray(_wide_grey(np.asarray(image)))
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    opaque = Image.new("RGBA", image.size, (background, background, background, 255))
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque.convert("RGB")


def _wide_grey(values_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return 8-bit grey levels from 32-bit numbers that hold 16-bit values (PPM, PNG); white is undefined for others."""
    if values_HW.dtype.kind == "f" or values_HW.min() < 0 or values_HW.max() > 0xFFFF:
        raise MediaError("its grey levels are 32-bit numbers without a defined white; convert it to 8 or 16 bits")
    return (values_HW.astype(np.int32) >> 8).astype(np.uint8)


def _fit(image: Image.Image, spec: ImageSettings) -> Image.Image:
    """Resize with antialiasing (bicubic, its support scaled with the reduction) to ``size`` by ``size``."""
    size, bicubic = spec.size, Image.Resampling.BICUBIC
    width, height = image.size
    if spec.fit == "squash":
        return image.resize((size, size), bicubic)
    if spec.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), bicubic, box=(left, top, left + side, top + side))
    scale = size / max(width, height)
    whole = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), bicubic)
    padded = Image.new(image.mode, (size, size), (spec.background,) * len(image.getbands()))
    padded.paste(whole, ((size - whole.width) // 2, (size - whole.height) // 2))
    return padded
