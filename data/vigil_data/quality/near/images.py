"""Near-duplicate images: perceptual hashes, compared by Hamming distance.

PDQ (Facebook 2019; 256 bits, from the package pdqhash) is what platforms exchange; without that package it is pHash (64 bits,
from the package imagehash). Both survive resizing, re-encoding, brightness and small crops or bars; neither survives rotation,
mirroring or large crops.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vigil_data.decode.image import decode_image
from vigil_data.errors import MediaError
from vigil_data.loading.packing import gather
from vigil_data.quality.near.candidates import Pairs, Wanted
from vigil_data.quality.near.hamming import hamming_pairs

ImageHash = Literal["pdq", "phash"]

BITS: dict[ImageHash, int] = {"pdq": 256, "phash": 64}
"""Bits of each hash."""

DISTANCES: dict[ImageHash, int] = {"pdq": 47, "phash": 8}
"""Largest distance of near-duplicates by default. PDQ's authors recommend 31."""

MAX_DISTANCES: dict[ImageHash, int] = {"pdq": 63, "phash": 15}
"""Largest distance that is searched for: a quarter of the bits, beyond which images have nothing in common."""

_SIZE = 512
_LEAST_PDQ_QUALITY = 50  # as its authors recommend; below it an image has too few edges to be told from others
_LEAST_GREY_DEVIATION = 6.0


@dataclass(frozen=True, slots=True)
class _Settings:
    """An image as it is hashed: 512 by 512 pixels, transparent ones white."""

    size: int = _SIZE
    fit: Literal["squash"] = "squash"
    background: int = 255
    max_images: int = 1
    max_pixels: int = 178_956_970


@cache
def installed_hash() -> ImageHash:
    """Return ``pdq`` if pdqhash is installed, else ``phash``."""
    return "pdq" if find_spec("pdqhash") else "phash"


@dataclass(frozen=True, slots=True, eq=False)
class ImagePrints:
    """Fingerprints of images.

    Attributes:
        code_S: digest of the file.
        bits_SB: perceptual hash, uint8 ``[S, bits / 8]``, most significant bit first.
        usable_S: whether the image could be decoded and has enough structure for its hash to mean anything.
    """

    code_S: NDArray[np.uint64]
    bits_SB: NDArray[np.uint8]
    usable_S: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.code_S)

    @classmethod
    def of(cls, files: Sequence[bytes], kind: ImageHash | None = None) -> "ImagePrints":
        """Return the fingerprints of encoded images; a file that cannot be decoded equals only its copies.

        Raises:
            ModuleNotFoundError: if the hash's package is not installed.
        """
        kind = kind or installed_hash()
        hashed = [_HASHES[kind](file) for file in files]
        bits_SB = np.zeros((len(files), BITS[kind] // 8), np.uint8)
        for place, bits in enumerate(hashed):
            if bits is not None:
                bits_SB[place] = np.packbits(bits)
        return cls(
            np.array([file_code(file) for file in files], np.uint64), bits_SB, np.array([b is not None for b in hashed], np.bool_)
        )

    @classmethod
    def concat(cls, parts: Sequence["ImagePrints"]) -> "ImagePrints":
        """Return the fingerprints of several sequences of images, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("code_S", "bits_SB", "usable_S")))

    def take(self, index: NDArray[np.int64]) -> "ImagePrints":
        """Return some of them, in the given order."""
        return ImagePrints(self.code_S[index], self.bits_SB[index], self.usable_S[index])

    def pairs(self, threshold: float, wanted: Wanted) -> Iterator[Pairs]:
        """Yield pairs of images whose hashes differ in at most ``threshold`` bits; some several times."""
        usable = np.flatnonzero(self.usable_S)
        found = hamming_pairs(self.bits_SB[usable], int(threshold), lambda left, right: wanted(usable[left], usable[right]))
        for left, right, distance in found:
            yield usable[left], usable[right], distance


def file_code(file: bytes) -> int:
    """Return the digest of a file by which its copies are found; never 0."""
    return int.from_bytes(sha256(file).digest()[:8], "little") or 1


def _pixels(file: bytes) -> NDArray[np.uint8] | None:
    """Return an image as uint8 ``[512, 512, 3]``, ``None`` if it cannot be decoded."""
    try:
        decoded, _ = gather(decode_image(file, 0, 1, _Settings()))
    except MediaError:
        return None
    return np.ascontiguousarray(decoded.arrays[0]["pixels"].transpose(1, 2, 0))


def _pdq(file: bytes) -> NDArray[np.bool_] | None:
    import pdqhash

    pixels_HWC = _pixels(file)
    if pixels_HWC is None:
        return None
    bits, quality = pdqhash.compute(pixels_HWC)
    return np.asarray(bits, np.bool_) if quality >= _LEAST_PDQ_QUALITY else None


def _phash(file: bytes) -> NDArray[np.bool_] | None:
    import imagehash
    from PIL import Image

    pixels_HWC = _pixels(file)
    if pixels_HWC is None or pixels_HWC.mean(axis=2).std() < _LEAST_GREY_DEVIATION:
        return None
    return np.asarray(imagehash.phash(Image.fromarray(pixels_HWC)).hash, np.bool_).ravel()


_HASHES: dict[ImageHash, Callable[[bytes], NDArray[np.bool_] | None]] = {"pdq": _pdq, "phash": _phash}
