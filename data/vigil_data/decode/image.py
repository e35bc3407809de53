"""An encoded picture to uint8 RGB of the model's size."""

import io
import struct
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vigil_data.decode.suppress_stderr import silenced
from vigil_data.errors import MediaError
from vigil_data.loading.packing import Segment, Span
from vigil_data.settings import ImageSettings

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened. Pillow knows more, some of which call other programs (EPS) and none of which people post."""

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
"""The EXIF orientation to what turns the picture upright (EXIF 2.32, section 4.6.4)."""


def size_of(data: bytes) -> tuple[int, int]:
    """Read a picture's width and height in pixels from its header; nothing is decoded.

    Raises:
        MediaError: it is empty, of an unknown format, or its header is damaged or announces an absurd size.
    """
    with _opened(data) as image:
        return image.size


def decode_image(data: bytes, index: int, limit: int, spec: ImageSettings) -> Generator[Segment, None, int]:
    """Decode one picture to the model's size; of an animation, its first frame.

    Args:
        data: an encoded picture.
        index: which of the item's pictures it is, for the span.
        limit: 0 leaves the picture out unseen.
        spec: size, fit and background.

    Yields:
        One segment (``pixels`` uint8 ``[3, H, W]``).

    Returns:
        How many were left out: 0 or 1.

    Raises:
        MediaError: the picture cannot be decoded whole, or has more than ``spec.max_pixels``.
    """
    if limit < 1:
        return 1
    with _opened(data) as image:
        width, height = image.size
        if width * height > spec.max_pixels:
            raise MediaError(f"a picture of {width} x {height} pixels, more than max_pixels {spec.max_pixels}")
        _draft(image, spec)
        image.load()
        upright = _upright(image)
        pixels_CHW = np.ascontiguousarray(np.asarray(_fit(_to_rgb(upright, spec.background), spec)).transpose(2, 0, 1))
    yield {"pixels": pixels_CHW}, Span(index)
    return 0


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a picture; whatever Pillow raises or warns of it, here or in the block, becomes a MediaError of one line."""
    if not data:
        raise MediaError("the file is empty")
    kind = None
    # libtiff prints what it thinks of a damaged file; Pillow's own remarks are Python warnings.
    with warnings.catch_warnings(), silenced() if data[:2] in (b"II", b"MM") else nullcontext():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                kind = image.format
                if min(image.size) < 1:
                    raise MediaError(f"a {kind} file of {image.width} x {image.height} pixels")
                yield image
        except MediaError:
            raise
        except UnidentifiedImageError:
            raise MediaError("not a picture of a known format, or its header is cut off") from None
        except Image.DecompressionBombError:
            raise MediaError("the header announces more pixels than can be a picture (decompression bomb)") from None
        except Exception as error:  # hostile bytes make Pillow's plugins raise almost anything
            raise MediaError(_reason(kind, error)) from None


def _reason(kind: str | None, error: Exception) -> str:
    if kind is None:
        return "the picture's header is damaged or cut off"
    if isinstance(error, MemoryError):
        return f"the {kind} file needs more memory than there is"
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return f"the {kind} file is truncated"
    return f"the {kind} file is damaged"


def _draft(image: Image.Image, spec: ImageSettings) -> None:
    """Let the JPEG decoder leave out detail that resizing would drop; other formats ignore it."""
    # Twice the wanted size, so that the resize filter still works on more detail than it keeps.
    short, long = sorted(image.size)
    scale = 2 * spec.size / (long if spec.fit == "pad" else short)
    if scale < 1:
        image.draft(None, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):
        return image  # a viewer shows a picture with broken EXIF as it is, and so do we
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, background: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        grey_HW = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(grey_HW).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_wide_grey(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    opaque = Image.new("RGBA", image.size, (background, background, background, 255))
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque.convert("RGB")


def _wide_grey(values_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey levels kept as 32-bit numbers: 16-bit ones as they come from PPM and PNG; of others white is unknown."""
    if values_HW.dtype.kind == "f" or values_HW.min() < 0 or values_HW.max() > 0xFFFF:
        raise MediaError("its grey levels are 32-bit numbers, of which none is known to be white; convert it to 8 or 16 bits")
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
    padded = Image.new("RGB", (size, size), (spec.background,) * 3)
    padded.paste(whole, ((size - whole.width) // 2, (size - whole.height) // 2))
    return padded
