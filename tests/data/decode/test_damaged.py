"""Media damaged at random: decoded, or refused with one line; never a crash, another exception, or noise."""

import io
import random

import numpy as np
import pytest
import soundfile
from PIL import Image

from vigil_data.decode import Decoder, Undecodable, probe
from vigil_data.items import Item
from vigil_data.specs import AudioInput, ImageInput, Inputs

PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
SOUNDS = (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))


def picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((61, 43)).convert("RGB").save(file, form)
    return file.getvalue()


def sound(form: str, subtype: str) -> bytes:
    file = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(6_000) * 0.1).astype(np.float32)
    soundfile.write(file, tone, 16_000, format=form, subtype=subtype)
    return file.getvalue()


def damage(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut off, left out or put in twice."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(1, len(data)))
        kind = chance.randrange(4)
        if kind == 0:
            data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        else:
            size = chance.randint(1, 64)
            data = data[:at] + (data[at : at + size] * 2 if kind == 2 else b"") + data[at + size :]
    return data


@pytest.mark.prove
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", [*PICTURES, *SOUNDS], ids=str)
def test_decoder_decodes_or_refuses_damaged_media(form, proofs, capfd):
    whole = picture(form) if isinstance(form, str) else sound(*form)
    field = "image" if isinstance(form, str) else "audio"
    inputs = Inputs(image=ImageInput(size=16)) if field == "image" else Inputs(audio=AudioInput(rate=8_000, window=0.5))
    decoder, chance, counts = Decoder(inputs, ()), random.Random(0), {"decoded": 0, "refused": 0}
    assert decoder.decode(Item("whole", **{field: (whole,)})).segments
    for _ in range(proofs(60, 5_000)):
        item = Item("damaged", **{field: (damage(whole, chance),)})
        refusal = None
        try:
            probe(item)
            decoded = decoder.decode(item)
        except Undecodable as error:
            refusal = str(error)
        if refusal is None:
            (segments,) = decoded.segments.values()
            assert all(np.isfinite(array).all() for segment in segments.arrays for array in segment.values())
        else:
            assert len(refusal.splitlines()) == 1
        counts["decoded" if refusal is None else "refused"] += 1
    assert counts["refused"]
    assert capfd.readouterr() == ("", "")
    print(f"{form}: {counts['decoded']} decoded, {counts['refused']} refused")
