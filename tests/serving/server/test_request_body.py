"""Parsing of request bodies: valid bodies give the items that were sent, mistakes give one line without content."""

import base64
import contextlib
import io
import json
import zlib

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError
from vigil_serving.server.request_body import parse_items
from vigil_serving.server.settings import RequestLimits

from .conftest import as_json

JSON = "application/json"
LIMITS = RequestLimits(bytes=100_000, items=3, media=4, pixels=10_000, seconds=5.0, characters=100)


def refusal(body: bytes, kind: str = JSON, limits: RequestLimits = LIMITS) -> RequestError:
    with pytest.raises(RequestError) as refused:
        parse_items(kind, body, limits)
    assert "\n" not in refused.value.line
    return refused.value


def item(**parts) -> bytes:
    return json.dumps({"items": [{"id": "a", **parts}]}).encode()


texts = st.text(st.characters(codec="utf-8"), max_size=20)
media = st.lists(st.binary(max_size=30), max_size=2).map(tuple)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
columns = st.dictionaries(texts, st.none() | st.booleans() | numbers | texts, max_size=3)
some_texts = st.lists(texts, max_size=3).map(tuple)
made_items = st.builds(Item, texts.filter(bool), some_texts, media, media, columns=columns)


@given(st.lists(made_items, min_size=1, max_size=4))
def test_parse_items_reads_json(made: list[Item]) -> None:
    body = json.dumps({"items": [as_json(one) for one in made]}).encode()
    assert parse_items("application/json; charset=utf-8", body, RequestLimits()) == made


def form(parts: list[tuple[str, bytes, str | None]], boundary: str = "xYz") -> bytes:
    lines = b""
    for name, data, filename in parts:
        named = "" if filename is None else f'; filename="{filename}"'
        lines += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + data + b"\r\n"
    return lines + f"--{boundary}--\r\n".encode()


@given(made_items)
def test_parse_items_reads_forms(made: Item) -> None:
    parts = [("id", made.id.encode(), None), ("columns", json.dumps(dict(made.columns)).encode(), None)]
    parts += [("text", text.encode(), None) for text in made.text]
    parts += [("image", data, "p.png") for data in made.image] + [("audio", data, "s.wav") for data in made.audio]
    assert parse_items("multipart/form-data; boundary=xYz-boundary", form(parts, "xYz-boundary"), RequestLimits()) == [made]


def test_parse_items_accepts_forms_without_id_and_ignores_empty_file_fields() -> None:
    body = form([("text", b"call now", None), ("image", b"", "")])
    assert parse_items("multipart/form-data; boundary=xYz", body, LIMITS) == [Item("item", ("call now",))]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "not JSON at line 1"),
        (b'{"items":', 400, "not JSON"),
        (b"\xff\xfe", 400, "not UTF-8 at byte 0"),
        (b'{"items": NaN}', 400, "NaN"),
        (b'{"items": [{"id": "a", "columns": {"x": 1e999}}]}', 400, "beyond the range"),
        (b'{"items": [{"id": "a", "columns": {"x": ' + b"9" * 5000 + b"}}]}", 400, "too long"),
        (b"[" * 100_000, 400, "nested"),
        (b'{"items": [], "items": []}', 400, "same key twice"),
        (b'{"items": [{"id": "a", "text": ["\\ud800"]}]}', 400, "surrogate"),
        (b"[]", 422, "object with the single key"),
        (b'{"items": {}}', 422, "object with the single key"),
        (b'{"items": []}', 422, "at least one"),
        (b'{"items": [1]}', 422, "items[0]: must be an object"),
        (b'{"items": [{}]}', 422, "items[0]: id is missing"),
        (item(id=""), 422, "items[0].id"),
        (item(id="x" * 300), 422, "items[0].id"),
        (item(id=5), 422, "items[0].id"),
        (item(secret=1), 422, "unknown key"),
        (item(text="call"), 422, "items[0].text: must be a list"),
        (item(text=["a", 5]), 422, "items[0].text[1]"),
        (item(image=["!!!"]), 422, "items[0].image[0]: must be base64"),
        (item(image=["QQ"]), 422, "base64"),
        (item(image=["QQ==\n"]), 422, "base64"),
        (item(audio=["ünïcode="]), 422, "items[0].audio[0]"),
        (item(columns=[]), 422, "items[0].columns"),
        (item(columns={"x": {}}), 422, "items[0].columns"),
        (json.dumps({"items": [{"id": "a"}] * 4}).encode(), 413, "items: more than 3"),
        (item(text=["x" * 60, "y" * 60]), 413, "100 characters"),
        (item(columns={"x": "y" * 101}), 413, "100 characters"),
        (item(text=[""] * 101), 413, "100 characters"),
        (item(image=["QQ=="] * 3, audio=["QQ=="] * 2), 413, "more than 4 images and audio files"),
    ],
)
def test_parse_items_reports_mistakes_in_one_line(body: bytes, status: int, message: str) -> None:
    refused = refusal(body)
    assert refused.status == status
    assert message in refused.line


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ([("secret", b"x", None)], 422, "unknown part"),
        ([("id", b"a", None), ("id", b"b", None)], 422, "id: given more than once"),
        ([("id", b"", None)], 422, "id"),
        ([("text", b"\xff", None)], 400, "text: not UTF-8"),
        ([("columns", b"[1", None)], 400, "columns is not JSON"),
        ([("columns", b"[1]", None)], 422, "columns"),
        ([("image", b"x", "p")] * 600, 413, "parts"),
    ],
)
def test_parse_items_reports_mistakes_in_forms(parts, status: int, message: str) -> None:
    refused = refusal(form(parts), "multipart/form-data; boundary=xYz")
    assert refused.status == status
    assert message in refused.line


def test_parse_items_refuses_incomplete_forms_and_other_content_types() -> None:
    body = form([("text", b"call", None)])
    for kind in ("multipart/form-data", "multipart/form-data; boundary=other", f"multipart/form-data; boundary={'x' * 500}"):
        assert refusal(body, kind).status == 400
    assert "ends before its last boundary" in refusal(body[:-6], "multipart/form-data; boundary=xYz").line
    assert refusal(b"--xYz\r\n\r\ntext\r\n--xYz--\r\n", "multipart/form-data; boundary=xYz").status == 400
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
        assert refusal(b"{}", kind).status == 415


def image(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("L", (width, height)).save(data, "PNG")
    return data.getvalue()


def sound(seconds: float) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, np.zeros(int(8000 * seconds)), 8000, format="FLAC")
    return data.getvalue()


def test_check_limits_counts_pixels_and_seconds_of_all_items_without_decoding() -> None:
    def body(images=(), sounds=()):
        media = [{"image": [base64.b64encode(i).decode()]} for i in images] + [
            {"audio": [base64.b64encode(s).decode()]} for s in sounds
        ]
        return json.dumps({"items": [{"id": "a", **m} for m in media]}).encode()

    assert len(parse_items(JSON, body([image(100, 50), image(50, 100)], [sound(4.9)]), LIMITS)) == 3
    assert "10000 pixels" in refusal(body([image(100, 50), image(51, 100)])).line
    assert "5 seconds" in refusal(body((), [sound(2.4), sound(2.7)])).line
    # The headers of images of 12,000 x 12,000 and 2,000,000 x 2,000,000 pixels without data: they are refused without decoding.
    for side in (12_000, 2_000_000):
        head = b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
        bomb = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
        bomb += (100).to_bytes(4, "big") + b"IDAT" + b"\0" * 100
        refused = refusal(body([bomb]), limits=RequestLimits())
        assert refused.status == 413
        assert "decompression bomb" in refused.line


def test_parse_items_accepts_undecodable_media() -> None:
    body = item(image=[base64.b64encode(b"no picture").decode()], audio=[base64.b64encode(b"no sound").decode()])
    assert len(parse_items(JSON, body, LIMITS)) == 1


@given(st.binary(max_size=200), st.sampled_from([JSON, "multipart/form-data; boundary=x", "text/plain"]))
def test_parse_items_reads_or_refuses_any_bytes(body: bytes, kind: str) -> None:
    with contextlib.suppress(RequestError):
        assert parse_items(kind, body, LIMITS)
