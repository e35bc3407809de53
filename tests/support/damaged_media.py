"""Damaged media by seeded mutation of small real files: what an import meets in the wild, and what somebody makes to break it."""

import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000")
SOUNDS = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III", "OPUS": "OPUS"}
SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "OPUS": ".ogg"}
"""Suffix of a format if it is not its name."""


class Damaged(NamedTuple):
    """One file: its modality, the format of its suffix, what was done to it, and its bytes."""

    modality: str
    form: str
    kind: str
    data: bytes


@cache
def picture(form: str, frames: int = 1) -> bytes:
    """A sound image of 61 x 43 pixels."""
    base = Image.radial_gradient("L").resize((61, 43))
    pictures = [Image.merge("RGB", (base, base.rotate(40 * n), base.point(lambda v: 255 - v))) for n in range(1, frames + 1)]
    file = io.BytesIO()
    options = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    if form == "TIFF":
        options["compression"] = "tiff_lzw"
    pictures[0].save(file, form, **options)
    return file.getvalue()


@cache
def sound(form: str) -> bytes:
    """A sound recording of 0.4 s at 16 kHz."""
    file = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(6_400) * 0.1 + np.sin(np.arange(6_400) * 0.003) * 9).astype(np.float32)
    soundfile.write(file, tone, 16_000, format="OGG" if form == "OPUS" else form, subtype=SOUNDS[form])
    return file.getvalue()


def whole(form: str) -> bytes:
    """The sound file of a format."""
    return picture(form) if form in PICTURES else sound(form)


def _truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _header(data: bytes, chance: random.Random) -> bytes:
    """Numbers in the first bytes replaced by extreme ones."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        size = chance.choice((1, 2, 4))
        value = chance.choice(
            (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, chance.getrandbits(32))
        )
        at = chance.randrange(min(len(data), 128))
        changed[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, chance.choice(("little", "big")))
    return bytes(changed)


def _moved(data: bytes, chance: random.Random) -> bytes:
    """A part left out, doubled, or put elsewhere."""
    at, size = chance.randrange(len(data)), chance.randint(1, 400)
    part, rest = data[at : at + size], data[:at] + data[at + size :]
    to = chance.randrange(len(rest) + 1)
    return chance.choice((rest, data[:at] + part + data[at:], rest[:to] + part + rest[to:]))


def _zeros(data: bytes, chance: random.Random) -> bytes:
    at = chance.choice((0, chance.randrange(len(data))))
    return data[:at] + bytes(len(data) - at) if at else bytes(chance.choice((0, 1, 16, len(data))))


def _noise(data: bytes, chance: random.Random) -> bytes:
    keep = chance.choice((0, 4, 12, 64))
    return data[:keep] + chance.randbytes(chance.randint(0, 4_000))


def _swapped(data: bytes, chance: random.Random) -> bytes:
    """Another format's file, alone, after this one's first bytes, or behind this one."""
    other = whole(chance.choice((*PICTURES, *SOUNDS)))
    head = chance.choice((4, 8, 16, 64))
    return chance.choice(
        (other, data[:head] + other[head:], data + other, b"<svg xmlns='http://www.w3.org/2000/svg'/>", gzip.compress(data))
    )


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "header edited": _header,
    "parts moved": _moved,
    "zero bytes": _zeros,
    "random bytes": _noise,
    "format swapped": _swapped,
}
"""What is done to a file of any format."""


def png(width: int, height: int, rows: bytes, *, extra: bytes = b"", depth: int = 8, colour: int = 0) -> bytes:
    """A PNG with a stated size and any compressed content."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@cache
def _deflated_zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(min(1 << 20, size - start))) for start in range(0, size, 1 << 20)]
    return b"".join((*parts, packer.flush()))


def _bomb_png_text(_: random.Random) -> bytes:
    """Compressed text and colour profile that expand to 60 MB."""
    text = b"Comment\0\0" + _deflated_zeros(60_000_000)
    profile = b"icc\0\0" + _deflated_zeros(60_000_000)
    return png(8, 8, zlib.compress(bytes(72)), extra=_chunk(b"zTXt", text) + _chunk(b"iCCP", profile))


def _bomb_png_pixels(chance: random.Random) -> bytes:
    """A size that the file does hold: 20 to 80 million pixels in some kilobytes."""
    side = chance.choice((4_500, 9_000))
    return png(side, side, _deflated_zeros(side * (side + 1)))


def _bomb_png_size(chance: random.Random) -> bytes:
    """A huge size, and almost no content."""
    width, height = chance.choice(((60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**31 - 1), (9_400, 9_400)))
    return png(width, height, zlib.compress(bytes(100)), depth=chance.choice((1, 8, 16)), colour=chance.choice((0, 2, 6)))


def _bomb_png_rest(_: random.Random) -> bytes:
    """Content that expands to 300 MB behind an image of 8 x 8 pixels."""
    return png(8, 8, _deflated_zeros(300_000_000))


def _bomb_gif_size(chance: random.Random) -> bytes:
    data = bytearray(picture("GIF"))
    data[6:10] = struct.pack("<HH", *chance.choice(((65_535, 65_535), (65_535, 1_000), (9_000, 9_000))))
    return bytes(data)


def _bomb_gif_frames(chance: random.Random) -> bytes:
    """Thousands of frames of one pixel."""
    frame = b"\x21\xf9\x04\x00\x00\x00\x00\x00\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"
    screen = b"GIF89a" + struct.pack("<HHBBB", *chance.choice(((1, 1), (3_000, 3_000))), 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    return screen + frame * chance.choice((2_000, 20_000)) + b"\x3b"


def _bomb_tiff(chance: random.Random) -> bytes:
    """Directories: thousands, a loop, or one with absurd counts."""
    kind = chance.randrange(3)
    if kind == 0:
        data = bytearray(picture("TIFF"))
        at = int.from_bytes(data[4:8], "little")
        entries = int.from_bytes(data[at : at + 2], "little")
        data[at + 2 + 12 * entries : at + 6 + 12 * entries] = struct.pack("<I", at)  # the next directory is this one
        return bytes(data)
    if kind == 1:
        data = bytearray(picture("TIFF"))
        at = int.from_bytes(data[4:8], "little")
        for entry in range(int.from_bytes(data[at : at + 2], "little")):
            if chance.random() < 0.4:
                data[at + 2 + 12 * entry + 4 : at + 2 + 12 * entry + 8] = struct.pack(
                    "<I", chance.choice((2**31, 2**32 - 1, 10**8))
                )
        return bytes(data)
    return picture("TIFF", frames=5)[: chance.choice((None, -200))]


def _bomb_jpeg(chance: random.Random) -> bytes:
    """A huge size in the frame header, or thousands of progressive scans."""
    data = bytearray(picture("JPEG"))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", *chance.choice(((65_500, 65_500), (9_000, 9_000), (1, 65_500), (0, 0))))
    if chance.random() < 0.3:
        file = io.BytesIO()
        Image.new("L", (2_000, 2_000)).save(file, "JPEG", progressive=True)
        progressive = file.getvalue()
        scan = progressive.rfind(b"\xff\xda")
        return progressive[:-2] + progressive[scan:-2] * 2_000 + b"\xff\xd9"
    return bytes(data)


def _bomb_webp(chance: random.Random) -> bytes:
    data = bytearray(picture("WEBP"))
    at = data.find(b"VP8 ")
    if chance.random() < 0.5 and at > 0:
        data[at + 14 : at + 18] = struct.pack("<HH", 16_383, 16_383)
        return bytes(data)
    file = io.BytesIO()
    frames = [Image.new("L", (64, 64), n % 255) for n in range(300)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=1)
    return file.getvalue()


def _bomb_bmp(chance: random.Random) -> bytes:
    data = bytearray(picture("BMP"))
    data[18:26] = struct.pack("<ii", *chance.choice(((2**31 - 1, 2**31 - 1), (9_000, 9_000), (-5, 5), (61, -(2**31)))))
    if chance.random() < 0.5:
        data[28:34] = struct.pack("<HI", 8, 1)  # run-length encoding
    return bytes(data)


def _bomb_wav(chance: random.Random) -> bytes:
    """A length, rate or number of channels that the file cannot have."""
    data = bytearray(sound("WAV"))
    data[22:24] = struct.pack("<H", chance.choice((1, 0, 255, 1024, 65_535)))
    data[24:28] = struct.pack("<I", chance.choice((16_000, 0, 1, 2**31, 2**32 - 1)))
    data[40:44] = struct.pack("<I", chance.choice((len(data) - 44, 0, 2**31, 2**32 - 1)))
    return bytes(data)


@cache
def _silent_flac() -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 1, format="FLAC", subtype="PCM_16") as flac:
        for _ in range(300):
            flac.write(np.zeros(100_000, np.int16))
    return file.getvalue()


def _bomb_flac(chance: random.Random) -> bytes:
    """An hour of silence in some kilobytes, or a length that is not there."""
    if chance.random() < 0.3:
        return _silent_flac()
    data = bytearray(sound("FLAC"))
    data[21:26] = bytes([data[21] & 0xF0 | chance.choice((0, 15))]) + chance.choice((b"\xff" * 4, bytes(4), b"\x00\x0f\xff\xff"))
    return bytes(data)


def _bomb_ogg(chance: random.Random) -> bytes:
    """A last page that states years of sound, or thousands of empty pages."""
    data = bytearray(sound(chance.choice(("OGG", "OPUS"))))
    if chance.random() < 0.5:
        at = data.rfind(b"OggS")
        data[at + 6 : at + 14] = struct.pack("<q", chance.choice((2**62, -2, 2**40, 0)))
        return bytes(data)
    empty = b"OggS\x00\x00" + bytes(8) + bytes(data[14:18]) + struct.pack("<I", 3) + bytes(4) + b"\x00"
    return bytes(data[:200]) + empty * 20_000 + bytes(data[200:])


def _bomb_mp3(chance: random.Random) -> bytes:
    """A tag of 250 MB that is not there, a million resynchronizations, or a stated number of frames."""
    data = sound("MP3")
    kind = chance.randrange(3)
    if kind == 0:
        return b"ID3\x04\x00\x00" + bytes([0x7F] * 4) + data
    if kind == 1:
        return data + b"\xff\xfb\x90" * 100_000 + data
    at = max(data.find(b"Xing"), data.find(b"Info"))
    return data[: at + 8] + b"\xff\xff\xff\xff" + data[at + 12 :]


BOMBS: dict[str, tuple[Callable[[random.Random], bytes], ...]] = {
    "PNG": (_bomb_png_size, _bomb_png_size, _bomb_png_text, _bomb_png_pixels, _bomb_png_rest),
    "JPEG": (_bomb_jpeg,),
    "WEBP": (_bomb_webp,),
    "GIF": (_bomb_gif_size, _bomb_gif_frames),
    "TIFF": (_bomb_tiff,),
    "BMP": (_bomb_bmp,),
    "WAV": (_bomb_wav,),
    "FLAC": (_bomb_flac,),
    "OGG": (_bomb_ogg,),
    "MP3": (_bomb_mp3,),
}
"""Files made to exhaust memory or time, by format: what they state, or what they expand to."""


def damaged_media(count: int, seed: int = 0) -> Iterator[Damaged]:
    """Yield ``count`` damaged files, of all formats in turn; one in ten is a bomb."""
    chance = random.Random(seed)
    forms = (*PICTURES, *SOUNDS)
    for number in range(count):
        form = forms[number % len(forms)]
        modality = "image" if form in PICTURES else "audio"
        if chance.random() < 0.1 and form in BOMBS:
            yield Damaged(modality, form, "bomb", chance.choice(BOMBS[form])(chance))
            continue
        kind = chance.choice(list(MUTATIONS))
        yield Damaged(modality, form, kind, MUTATIONS[kind](whole(form), chance))
