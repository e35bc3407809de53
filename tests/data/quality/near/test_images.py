"""Perceptual hashes survive resizing, encoding and brightness, and tell different pictures apart."""

import io
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vigil_data.quality.near.hamming import distances
from vigil_data.quality.near.images import DISTANCES, ImageHash, ImagePrints
from vigil_data.quality.near.search import clusters


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (14, 18, 3), np.uint8))
    return small.resize((180, 140), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["pdq", "phash"])
def test_image_prints_find_edits_of_a_picture(kind: ImageHash) -> None:
    originals = [picture(seed) for seed in range(12)]
    edits = [
        lambda image: encoded(image.resize((90, 70))),
        lambda image: encoded(image, "JPEG", quality=30),
        lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.8)),
        lambda image: encoded(image.crop((1, 1, 178, 139)), "WEBP"),
    ]
    files = [encoded(image) for image in originals]
    files += [edits[place % 4](image) for place, image in enumerate(originals)]
    label_S = clusters(ImagePrints.of(files, kind), DISTANCES[kind])
    assert label_S.tolist() == [*range(12), *range(12)]


@pytest.mark.parametrize("kind", ["pdq", "phash"])
def test_flat_and_damaged_images_equal_only_their_copies(kind: ImageHash) -> None:
    white, grey = (encoded(Image.new("RGB", (64, 64), (level,) * 3)) for level in (255, 128))
    prints = ImagePrints.of([white, grey, b"no image", white], kind)
    assert not prints.usable_S.any()
    assert clusters(prints, DISTANCES[kind]).tolist() == [0, 1, 2, 0]


def test_phash_is_that_of_imagehash() -> None:
    imagehash = pytest.importorskip("imagehash")
    files = [encoded(picture(seed).resize((512, 512))) for seed in range(4)]
    bits = np.stack([imagehash.phash(Image.open(io.BytesIO(file))).hash.ravel() for file in files])
    assert (ImagePrints.of(files, "phash").bits_SB == np.packbits(bits, axis=1)).all()


def test_pdq_of_large_images_is_close_to_that_of_all_their_pixels() -> None:
    import pdqhash

    images = [picture(seed).resize((900, 700), Image.Resampling.BICUBIC) for seed in range(4)]
    whole = np.packbits(np.stack([pdqhash.compute(np.asarray(image))[0] for image in images]), axis=1)
    assert distances(ImagePrints.of([encoded(image) for image in images], "pdq").bits_SB, whole).max() <= 16


def test_installed_hash_is_pdq_where_its_package_is() -> None:
    from vigil_data.quality.near.images import installed_hash

    assert installed_hash() == ("pdq" if find_spec("pdqhash") else "phash")
