"""Items from JSON: limits and types, the same for the server and for Triton's Python backend."""

import subprocess
import sys

import pytest

from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError
from vigil_serving.protocol.item_json import ITEM_KEYS, MAX_ID_CHARACTERS, item_from_json, item_to_json


def test_item_from_json_reads_every_key() -> None:
    value = {"id": "a", "text": ["call"], "image": ["QQ=="], "audio": ["QUI="], "columns": {"market": "DE", "n": 1, "x": None}}
    assert set(value) == set(ITEM_KEYS)
    assert item_from_json(value, "item") == Item("a", ("call",), (b"A",), (b"AB",), columns=value["columns"])
    assert item_from_json({"id": "a"}, "item") == Item("a")


def test_item_json_round_trip_with_roles_and_times() -> None:
    value = {
        "id": "a",
        "text": [{"role": "title", "text": "call"}, "now", {"role": "body", "text": "win", "start": 12.5, "end": 17.0}],
        "image": [{"role": "cover", "data": "QQ=="}],
        "audio": ["QUI="],
    }
    item = Item(
        "a",
        ("call", "now", "win"),
        (b"A",),
        (b"AB",),
        roles={"text": ("title", "body", "body"), "image": ("cover",)},
        times=(None, None, (12.5, 17.0)),
    )
    assert item_from_json(value, "item") == item
    assert item_to_json(item) == value
    assert item_from_json(item_to_json(item), "item") == item
    plain = {"id": "a", "text": ["call"], "image": [], "audio": [], "columns": {"market": "DE"}}
    assert item_to_json(item_from_json(plain, "item")) == plain


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "item: must be an object"),
        ({"id": "a", "txet": []}, "item: unknown key; the keys are id, text, image, audio, columns"),
        ({}, "item: id is missing"),
        ({"id": ""}, "item.id: must be a string of 1 to 256 characters"),
        ({"id": "x" * (MAX_ID_CHARACTERS + 1)}, "item.id: must be a string of 1 to 256 characters"),
        ({"id": "a", "text": "call"}, "item.text: must be a list of strings or objects"),
        ({"id": "a", "text": {"text": "call"}}, "item.text: must be a list of strings or objects"),
        ({"id": "a", "text": [{"text": 1}]}, "item.text[0]: must be a string"),
        ({"id": "a", "text": ["x", {"role": "title"}]}, "item.text[1]: text is missing"),
        (
            {"id": "a", "text": [{"text": "x", "role": "secret"}]},
            "item.text[0]: role must be one of body, title, context, transcript, ocr, cover",
        ),
        ({"id": "a", "text": [{"text": "x", "start": 2, "end": 1}]}, "item.text[0]: start is after end"),
        (
            {"id": "a", "text": [{"text": "x", "start": 2, "end": 1e7}]},
            "item.text[0]: start and end must be seconds from 0 to 1,000,000",
        ),
        ({"id": "a", "image": [{"path": "x"}]}, "item.image[0]: unknown key; the keys are role, data"),
        (
            {"id": "a", "image": [{"data": "QQ"}]},
            "item.image[0]: must be base64 (RFC 4648, section 4), padded and without line breaks",
        ),
        ({"id": "a", "text": [1]}, "item.text[0]: must be a string"),
        ({"id": "a", "image": ["QQ"]}, "item.image[0]: must be base64 (RFC 4648, section 4), padded and without line breaks"),
        ({"id": "a", "columns": []}, "item.columns: must be an object"),
        ({"id": "a", "columns": {"x": [1]}}, "item.columns: values must be strings, numbers, booleans or null"),
        ({"id": "a", "columns": {"x": float("inf")}}, "item.columns: values must be strings, numbers, booleans or null"),
    ],
)
def test_item_from_json_reports_mistakes(value: object, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        item_from_json(value, "item")
    assert (refused.value.status, refused.value.line) == (422, message)


def test_protocol_imports_no_web_packages() -> None:
    program = """
import sys
for name in ("starlette", "python_multipart", "multipart", "uvicorn", "pydantic", "prometheus_client"):
    sys.modules[name] = None  # importing it fails
import vigil_serving.protocol.errors, vigil_serving.protocol.item_json, vigil_serving.protocol.strict_json
import vigil_serving.protocol.tensors
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
