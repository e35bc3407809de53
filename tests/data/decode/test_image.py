"""Pictures to pixels: against Pillow's own operations, and every way in which a file can be broken."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vigil_data.decode.image import decode_image, read_image, size_of
from vigil_data.errors import MediaError, TooLargeError
from vigil_data.loading.packing import gather
from vigil_data.specs import ImageInput

RNG = np.random.default_rng(0)


def smooth(width, height):
    """A picture without fine detail, so that lossy formats and resizing stay close to it."""
    y, x = np.mgrid[0:height, 0:width]
    rgb_HWC = np.stack([x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), np.full_like(x, 90.0)], axis=2)
    return Image.fromarray(rgb_HWC.astype(np.uint8))


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(data, **spec):
    decoded, left_out = gather(decode_image(data, 0, 1, ImageInput(**{"size": 32, **spec})))
    assert left_out == 0
    (array,) = decoded.arrays
    assert array["pixels"].dtype == np.uint8
    assert array["pixels"].flags.c_contiguous
    return array["pixels"]


def far(left, right):
    return np.abs(left.astype(int) - right.astype(int)).max()


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "JPEG", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO"])
def test_decode_image_formats(form):
    image = smooth(64, 64)
    options = {"save_all": True, "append_images": [image]} if form == "MPO" else {}
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert far(pixels(encoded(image, form, **options)), expected) <= 12  # of 255; the lossy forms differ most


@settings(deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), fit=st.sampled_from(["crop", "pad", "squash"]))
def test_decode_image_any_size(width, height, fit):
    assert pixels(encoded(smooth(width, height), "PNG"), fit=fit).shape == (3, 32, 32)


@pytest.mark.parametrize(("width", "height"), [(100, 60), (60, 100), (64, 64), (20, 10)])
def test_decode_image_fits_equal_pillow(width, height):
    image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    data, bicubic = encoded(image, "PNG"), Image.Resampling.BICUBIC
    expected = {
        "squash": image.resize((32, 32), bicubic),
        "crop": ImageOps.fit(image, (32, 32), bicubic),
        "pad": ImageOps.pad(image, (32, 32), bicubic, color=(7, 7, 7)),
    }
    for fit, picture in expected.items():
        assert far(pixels(data, fit=fit, background=7), np.asarray(picture).transpose(2, 0, 1)) <= 1, fit


def test_decode_image_pads_a_thin_image():
    padded = pixels(encoded(Image.new("RGB", (1, 5000), "red"), "PNG"), fit="pad", background=0)
    assert (padded.reshape(3, -1).max(axis=1) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_decode_image_applies_exif_orientation(form, orientation):
    image = smooth(48, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, form, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    assert far(pixels(data, fit="squash"), np.asarray(upright).transpose(2, 0, 1)) <= 1


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_decode_image_ignores_invalid_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = smooth(48, 32)
    assert far(pixels(encoded(image, "JPEG", exif=exif)), pixels(encoded(image, "JPEG"))) == 0


def test_decode_image_ignores_broken_exif():
    image = smooth(48, 32)
    data = encoded(image, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f\x01\x02")
    assert far(pixels(data), pixels(encoded(image, "JPEG"))) == 0


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_decode_image_of_grey_equals_that_of_three_equal_channels(fit):
    grey = Image.fromarray(RNG.integers(0, 256, (90, 120), dtype=np.uint8))
    assert (
        far(
            pixels(encoded(grey, "PNG"), fit=fit, background=7),
            pixels(encoded(grey.convert("RGB"), "PNG"), fit=fit, background=7),
        )
        == 0
    )


def test_decode_image_counts_only_the_scans_of_the_image_itself():
    # Within other segments FFDA is data: the comment has a thousand of them.
    assert pixels(encoded(smooth(3000, 3000), "JPEG", comment=b"\xff\xda" * 1000, progressive=True)).shape == (3, 32, 32)


def test_decode_image_does_not_log_the_faults_of_a_file(caplog):
    data = bytearray(encoded(smooth(40, 30), "TIFF"))
    entry = data.find(struct.pack("<HH", 277, 3))  # samples per pixel
    data[entry + 8 : entry + 10] = struct.pack("<H", 6144)
    with pytest.raises(MediaError):
        pixels(bytes(data))
    assert caplog.records == []


def test_read_image_refuses_animations_that_expand_to_gigapixels():
    frame = b"\x21\xf9\x04" + bytes(5) + b"\x2c" + bytes(4) + b"\x01\x00\x01" + bytes(2) + b"\x02\x02\x44\x01\x00"
    data = b"GIF89a" + struct.pack("<HHBBB", 3_000, 3_000, 0x80, 0, 0) + bytes(3) + b"\xff" * 3 + frame * 300 + b"\x3b"
    with pytest.raises(TooLargeError, match=r"an image of 300 frames of 3000 x 3000 pixels \(decompression bomb\)"):
        read_image(data, 10_000_000, 1_000)


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF"])
def test_read_image_reads_every_frame(form):
    frames = [smooth(40 + n % 2, 30) if form == "TIFF" else smooth(40, 30).rotate(n * 20) for n in range(4)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert read_image(data, 1_230, 4) == form
    with pytest.raises(TooLargeError, match="an image of more than 3 frames"):
        read_image(data, 1_230, 3)
    with pytest.raises(TooLargeError, match="more than max_pixels 1199"):
        read_image(data, 1_199, 4)
    cut = data[: len(data) * 3 // 4]
    if form != "WEBP":  # whose header states the size of the file
        assert pixels(cut).shape == (3, 32, 32)
    with pytest.raises(MediaError):
        read_image(cut, 1_230, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_decode_image_transparency_shows_the_background(mode):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    data = encoded(image if mode != "LA" else image.convert("LA"), "PNG") if mode != "P" else encoded(image.quantize(8), "PNG")
    decoded = pixels(data, background=200)
    assert (decoded[:, :, :12] == 200).all()
    assert far(decoded[0, :, 20:], np.full((32, 12), 76 if mode == "LA" else 255)) <= 1


def test_decode_image_blends_half_transparent_pixels():
    decoded = pixels(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"), background=255)
    assert far(decoded, np.full((3, 32, 32), 127)) <= 1


def test_decode_image_palette_with_transparent_bytes_does_not_warn():
    image = Image.new("P", (32, 32))
    image.putpalette([255, 0, 0, 0, 255, 0])
    decoded = pixels(encoded(image, "PNG", transparency=b"\x00\xff"), background=9)
    assert (decoded == 9).all()


def test_decode_image_colour_key_transparency():
    for mode, colour in (("RGB", (10, 20, 30)), ("L", 10)):
        data = encoded(Image.new(mode, (8, 8), colour), "PNG", transparency=colour)
        assert (pixels(data, background=9) == 9).all()


@pytest.mark.parametrize(("mode", "colour", "expected"), [("1", 1, 255), ("L", 77, 77), ("P", 0, 0)])
def test_decode_image_grey_modes(mode, colour, expected):
    assert (pixels(encoded(Image.new(mode, (8, 8), colour), "PNG")) == expected).all()


def test_decode_image_cmyk_jpeg():
    red = pixels(encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"))
    assert far(red[0], np.full((32, 32), 255)) <= 4
    assert red[1:].max() <= 4


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_decode_image_scales_sixteen_bit_grey(form):
    grey_HW = np.full((32, 32), 0x8012, np.uint16)
    data = b"P5 32 32 65535\n" + grey_HW.astype(">u2").tobytes() if form == "PPM" else encoded(Image.fromarray(grey_HW), form)
    assert (pixels(data) == 0x80).all()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_decode_image_takes_the_first_frame(form):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    decoded = pixels(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    assert decoded[0].min() > 245
    assert decoded[1:].max() < 10


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_decode_image_jpeg_draft_mode_equals_full_decoding(fit):
    image = smooth(1600, 900)
    assert far(pixels(encoded(image, "JPEG", quality=95), fit=fit), pixels(encoded(image, "PNG"), fit=fit)) <= 6


def test_decode_image_limit_skips_images_unread():
    decoded, left_out = gather(decode_image(b"not a picture", 3, 0, ImageInput()))
    assert (list(decoded.arrays), list(decoded.spans), left_out) == ([], [], 1)


def png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\x00\x00\x00\x00IDAT"


def many_scans(more):
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True, quality=5)
    last = data.rfind(b"\xff\xda")
    first = data.count(b"\xff\xda")
    return data[:-2] + data[last:-2] * (more + 1 - first) + b"\xff\xd9"


NOISE = Image.fromarray(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8))
LZW = bytearray(encoded(NOISE, "TIFF", compression="tiff_lzw"))
LZW[2000:3000] = RNG.bytes(1000)
UNKNOWN = "not an image of a supported format, or its header is truncated"
HEADER = "the image's header is damaged or truncated"
FIRST_SIGHT = {
    "empty": (b"", "the file is empty"),
    "text": (b"This is no picture, whatever its name says. " * 9, UNKNOWN),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNKNOWN),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
    "png signature": (encoded(NOISE, "PNG")[:20], HEADER),
    "jpeg header cut": (encoded(NOISE, "JPEG")[:30], HEADER),
    "webp cut": (encoded(NOISE, "WEBP")[:4000], HEADER),
    "no pixels": (png_header(0, 9), UNKNOWN),
    "bomb": (png_header(60_000, 60_000), "the header states too many pixels (decompression bomb)"),
    "hardly any bytes": (png_header(9_000, 9_000), "a PNG file of 9000 x 9000 pixels in 41 bytes (decompression bomb)"),
    "scans": (many_scans(300), "a JPEG file of 2000 x 2000 pixels in 301 scans (decompression bomb)"),
}
FULL_SIGHT = {
    "jpeg cut": (encoded(NOISE, "JPEG")[:3000], "the JPEG file is truncated"),
    "png cut": (encoded(NOISE, "PNG")[:9000], "the PNG file is truncated"),
    "gif cut": (encoded(NOISE, "GIF")[:5000], "the GIF file is truncated"),
    "bmp cut": (encoded(NOISE, "BMP")[:5000], "the BMP file is truncated"),
    "avif cut": (encoded(NOISE, "AVIF")[:-9], "the AVIF file is truncated"),
    "tiff damaged": (bytes(LZW), "the TIFF file is damaged"),
    "large": (png_header(10_000, 10_000) + bytes(20_000), "an image of 10000 x 10000 pixels, more than max_pixels 89478485"),
    "32-bit grey": (
        encoded(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"),
        "its grey levels are 32-bit numbers without a defined white; convert it to 8 or 16 bits",
    ),
    "float grey": (
        encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
        "its grey levels are 32-bit numbers without a defined white; convert it to 8 or 16 bits",
    ),
}


@pytest.mark.parametrize("name", [*FIRST_SIGHT, *FULL_SIGHT])
def test_decode_image_broken_file_is_one_clear_line(name, capfd):
    data, reason = (FIRST_SIGHT | FULL_SIGHT)[name]
    with pytest.raises(MediaError) as caught:
        pixels(data)
    assert str(caught.value) == reason
    if name in FIRST_SIGHT:
        with pytest.raises(MediaError) as caught:
            size_of(data)
        assert str(caught.value) == reason
    else:
        size_of(data)
    assert capfd.readouterr() == ("", "")


@settings(deadline=None, max_examples=300)
@given(
    form=st.sampled_from(["PNG", "GIF", "JPEG", "TIFF", "WEBP", "BMP"]),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20),
)
def test_decode_image_damage_is_a_media_error_or_pixels(form, cut, flips):
    data = bytearray(encoded(smooth(40, 30), form))
    for place, value in flips:
        data[int(place * len(data))] = value
    try:
        assert pixels(bytes(data[: int(cut * len(data)) + 1]), max_pixels=1_000_000).shape == (3, 32, 32)
    except MediaError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017  (most damage is refused, some can be seen)
