"""Items from JSON: limits and types, the same for the server and for Triton's Python backend."""

import subprocess
import sys

import pytest

from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError
from vigil_serving.protocol.item_json import ITEM_KEYS, MAX_ID_CHARACTERS, item_from_json


def test_item_from_json_reads_every_key() -> None:
    value = {"id": "a", "text": ["call"], "image": ["QQ=="], "audio": ["QUI="], "columns": {"market": "DE", "n": 1, "x": None}}
    assert set(value) == set(ITEM_KEYS)
    assert item_from_json(value, "item") == Item("a", ("call",), (b"A",), (b"AB",), columns=value["columns"])
    assert item_from_json({"id": "a"}, "item") == Item("a")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "item: must be an object"),
        ({"id": "a", "txet": []}, "item: unknown key; the keys are id, text, image, audio, columns"),
        ({}, "item: id is missing"),
        ({"id": ""}, "item.id: must be a string of 1 to 256 characters"),
        ({"id": "x" * (MAX_ID_CHARACTERS + 1)}, "item.id: must be a string of 1 to 256 characters"),
        ({"id": "a", "text": "call"}, "item.text: must be a list of strings"),
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
