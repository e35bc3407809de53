"""The pool decodes everything that can be decoded, whatever becomes of its processes."""

import random
import time
from collections import Counter

import pytest
from damaged_media import png, whole
from failing_decoder import decode

from vigil_data.items import Modality
from vigil_data.quality.checks.media_pool import MediaLimits, MediaPool, Verdict

ENDS = {
    "crash": Verdict("crash", "the decoder crashed (signal 11: Segmentation fault)"),
    "killed": Verdict("crash", "the decoder was killed, as by a system without memory"),
    "exit": Verdict("crash", "the decoder crashed (exit status 3)"),
    "hang": Verdict("timeout", "takes more than 0.6 s to decode"),
    "memory": Verdict("bomb", "takes more than 300 MB of memory to decode"),
    "broken": Verdict("undecodable", "broken"),
    "bug": Verdict("crash", "the decoder failed (RuntimeError: a bug of the library)"),
}


def test_media_pool_attributes_each_failure_to_its_medium_and_goes_on() -> None:
    chance = random.Random(0)
    what = [*ENDS, *["fine"] * 200]
    chance.shuffle(what)
    media: list[tuple[int, Modality, bytes]] = [(n, "image", name.encode()) for n, name in enumerate(what)]
    limits = MediaLimits(decoding_seconds=0.6, memory=300_000_000)
    started = time.monotonic()
    with MediaPool(limits, workers=2, decode=decode) as pool:
        verdicts = list(pool.verify(media))
        again = dict(pool.verify(media[:3]))  # it can be used again
    assert time.monotonic() - started < 60
    assert len(verdicts) == len(media)
    assert dict(verdicts) == {n: ENDS.get(name, Verdict(form=name)) for n, name in enumerate(what)}
    assert again == {n: ENDS.get(name, Verdict(form=name)) for n, name in enumerate(what[:3])}


def test_media_pool_reads_its_media_as_a_stream() -> None:
    drawn: Counter[str] = Counter()

    def media():
        for number in range(400):
            drawn["media"] += 1
            yield number, "image", bytes(100_000)

    with MediaPool(MediaLimits(), workers=1) as pool:
        ahead = [drawn["media"] - done for done, _ in enumerate(pool.verify(media()))]
    assert drawn["media"] == 400
    assert max(ahead) <= 2 * 81  # a job that is decoded, and the next one of 8 MB


def test_media_pool_limits_bytes_pixels_and_memory() -> None:
    import zlib

    large = png(6_000, 4_000, zlib.compress(bytes(4_000 * 18_001), 9), colour=2)
    media: list[tuple[str, Modality, bytes]] = [
        ("png", "image", whole("PNG")),
        ("large", "image", large),
        ("wav", "audio", whole("WAV")),
    ]
    with MediaPool(MediaLimits(bytes=len(whole("PNG")), pixels=61 * 43), workers=1) as pool:
        verdicts = dict(pool.verify(media))
    assert verdicts["png"] == Verdict(form="PNG")
    assert verdicts["wav"].reason.startswith("a file of 0.0128 MB, more than")
    assert verdicts["large"].kind == "bomb"
    with MediaPool(MediaLimits(memory=60_000_000), workers=1) as pool:
        verdicts = dict(pool.verify(media))
    assert verdicts["large"] == Verdict("bomb", "the PNG file needs more memory than is available")
    assert (verdicts["png"].form, verdicts["wav"].form) == ("PNG", "WAV")


def test_media_pool_names_a_wrong_modality() -> None:
    with MediaPool(workers=1) as pool:
        verdicts = dict(pool.verify([("a", "audio", whole("PNG")), ("b", "image", whole("MP3"))]))
    assert verdicts["a"] == Verdict("undecodable", "not an audio file of a supported format (WAV, FLAC, Ogg or MP3)")
    assert verdicts["b"].kind == "undecodable"


@pytest.mark.parametrize("count", [0, 1])
def test_media_pool_of_few_media(count: int) -> None:
    with MediaPool() as pool:
        assert len(list(pool.verify([("a", "image", whole("PNG"))] * count))) == count
