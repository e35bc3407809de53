"""Malformed requests: broken JSON, media, forms, tensors and HTTP heads."""

import base64
import io
import json
import random

import numpy as np
import soundfile
from PIL import Image

from .raw_http import post, score

MARK = "no-log-may-hold-this"
HEADS = [
    ["Content-Length: -1"],
    ["Content-Length: 1", "Content-Length: 2"],
    ["Content-Length: x"],
    [f"X-Mark: {'x' * 100_000}"],
    ["Transfer-Encoding: gzip"],
    ["Content-Length: 5", "Transfer-Encoding: chunked"],
    ["Content-Encoding: br"],
    ["bad line"],
    ["Content-Type: \x01\x02"],
    ["Content-Length: 99999999999999999999999"],
    ["X: \r\n\r\n injected"],
]


def valid_media() -> list[bytes]:
    """Return a small image and audio file of every format."""
    made = []
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = io.BytesIO()
        Image.effect_noise((40, 30), 90).convert("RGB").save(data, form)
        made.append(data.getvalue())
    for form in ("WAV", "FLAC", "OGG", "MP3"):
        data = io.BytesIO()
        soundfile.write(data, np.sin(np.arange(4000) / 5), 8000, format=form)
        made.append(data.getvalue())
    return made


def corrupt(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with some of them changed, removed, repeated or cut off."""
    corrupted = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(corrupted) + 1)
        kind = chance.randrange(4)
        if kind == 0 and corrupted:
            corrupted[place % len(corrupted)] = chance.randrange(256)
        elif kind == 1:
            del corrupted[place : place + chance.randint(1, 40)]
        elif kind == 2:
            corrupted[place:place] = corrupted[place : place + chance.randint(1, 40)]
        else:
            del corrupted[max(place, len(corrupted) // 2) :]
    return bytes(corrupted)


def malformed_request(chance: random.Random, media: list[bytes]) -> tuple[str, bytes, bool]:
    """Return a kind, a request as bytes, and whether it must be refused."""
    kind = chance.choice(["json", "media", "form", "kserve", "head"])
    corrupted = corrupt(chance.choice(media), chance)
    if kind == "json":
        body, sure = _json(chance, media)
        return kind, post("/v1/score", body), sure
    if kind == "media":
        modality = chance.choice(["image", "audio"])
        return kind, score({"id": MARK, modality: [base64.b64encode(corrupted).decode()]}), False
    if kind == "form":
        head = f'--b\r\nContent-Disposition: form-data; name="image"; filename="{MARK}"\r\n\r\n'
        form = head.encode() + corrupted + b"\r\n--b--\r\n"
        broken = chance.random() < 0.5
        body = form[: chance.randrange(len(form) - 6)] if broken else corrupt(form, chance)
        return kind, post("/v1/score", body, "multipart/form-data; boundary=b"), broken
    if kind == "kserve":
        return kind, _tensor(chance), False
    lines = "\r\n".join(chance.choice(HEADS))
    return kind, f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n{{}}".encode("latin-1"), True


def _json(chance: random.Random, media: list[bytes]) -> tuple[bytes, bool]:
    """Return a body that is malformed for certain (true) or possibly."""
    good = json.dumps({"items": [{"id": MARK, "text": [MARK], "image": [base64.b64encode(chance.choice(media)).decode()]}]})
    if chance.random() < 0.3:
        return corrupt(good.encode(), chance), False
    number = chance.choice([b"NaN", b"-Infinity", b"1e999", b"9" * 9999, b"{}"])
    item = chance.choice([None, 1, [], "x", {}, {"id": None}, {"id": []}])
    medium = {"id": "a", chance.choice(["text", "image", "audio"]): chance.choice([1, {}, [1], [[]], [None], "x"])}
    base = {"id": "a", "image": [chance.choice(["=", "A", "A===", "AA==A", "%", "\u00e9", " AAAA"])]}
    sure = [
        good.encode()[: chance.randrange(len(good))],
        good.encode() + chance.choice([b"}", b"]", b"\0", b"x"]),
        good.replace(MARK, "\\ud83d", 1).encode(),
        good.encode().replace(b'"id"', b'"id": 1, "id"'),
        b"[" * chance.randint(1, 200_000),
        b'{"items":' * chance.randint(1, 50_000),
        b'{"items": [{"id": "a", "columns": {"x": ' + number + b"}}]}",
        good.encode().replace(b'"text"', chance.choice([b'"txet"', b'"id"', b'""'])),
        *(json.dumps({"items": [wrong]}).encode() for wrong in (item, medium, base)),
        json.dumps({"items": [{"id": "a"}] * chance.randint(65, 3000)}).encode(),
        bytes(chance.randrange(128, 256) for _ in range(50)),
    ]
    return chance.choice(sure), True


def _tensor(chance: random.Random) -> bytes:
    element = json.dumps({"id": MARK, "text": [MARK]}).encode()
    tensor = {"name": "item", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(element) + 4}}
    head = json.dumps({"inputs": [tensor]}).encode()
    body = corrupt(head + len(element).to_bytes(4, "little") + element, chance)
    length = chance.choice([len(head), len(body), chance.randrange(10**6)])
    header = f"Inference-Header-Content-Length: {length}"
    return post("/v2/models/tiny/infer", body, "application/octet-stream", header)
