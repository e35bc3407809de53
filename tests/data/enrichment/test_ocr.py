"""Words that are drawn into pictures are read back."""

import io
import socket
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vigil_data.enrichment.ocr import RapidOcr
from vigil_data.errors import MediaError
from vigil_data.items import Item

pytest.importorskip("rapidocr")


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def poster(*lines: str) -> Image.Image:
    picture = Image.new("RGB", (260, 44 * len(lines) + 20), "white")
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((10, 18 + 44 * number), line, fill="black", font=ImageFont.load_default(24))
    return picture


@pytest.fixture(scope="module")
def ocr() -> RapidOcr:
    return RapidOcr(threads=1)


def test_ocr_reads_words_without_a_network(ocr: RapidOcr, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("OCR opened a connection"))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = encoded(poster("turned").transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    item = Item("1", (), (encoded(poster("come in", "and WIN")), encoded(Image.new("RGB", (40, 40), "teal")), turned))
    finding = ocr(item)
    assert finding.texts == ["come in\nand WIN", "turned"]
    assert finding.times == ()


def test_ocr_reads_words_on_pictures_of_the_demonstration(ocr: RapidOcr) -> None:
    from vigil_data.demo.objects import OBJECTS
    from vigil_data.demo.pictures import draw

    picture = Image.open(io.BytesIO(draw(next(iter(OBJECTS)), 0, Random(0)))).convert("RGB").resize((320, 320))
    ImageDraw.Draw(picture).rectangle((10, 240, 310, 300), fill="white")
    ImageDraw.Draw(picture).text((20, 250), "free tickets", fill="black", font=ImageFont.load_default(32))
    assert "free tickets" in ocr(Item("1", (), (encoded(picture),))).texts[0]


def test_ocr_refuses_what_cannot_be_decoded(ocr: RapidOcr) -> None:
    with pytest.raises(MediaError, match="truncated"):
        ocr(Item("1", (), (encoded(Image.fromarray(np.zeros((90, 90, 3), np.uint8)))[:60],)))


def test_ocr_identity_names_version_model_and_confidence(ocr: RapidOcr) -> None:
    assert ocr.identity.startswith("rapidocr ")
    assert ocr.identity.endswith(" confidence 0.5")
    assert RapidOcr(0.9, threads=1).identity.endswith(" confidence 0.9")
