"""Items from JSON: one reader for the HTTP server and for Triton's Python backend.

Example:
    >>> item_from_json({"id": "post-1", "text": ["call now"], "columns": {"market": "DE"}}, "items[0]")
"""

import binascii
import math
from collections.abc import Mapping
from typing import Any

from vigil_data.items import Item
from vigil_serving.protocol.errors import invalid

ITEM_KEYS = ("id", "text", "image", "audio", "columns")
MAX_ID_CHARACTERS = 256


def item_from_json(value: Any, where: str) -> Item:
    """Read one item.

    Args:
        value: an object with ``id``, and any of ``text`` (strings), ``image`` and ``audio`` (base64) and ``columns`` (scalars).
        where: name of the item in error messages.

    Raises:
        RequestError: 422, if it is anything else.
    """
    if not isinstance(value, dict):
        raise invalid(f"{where}: must be an object")
    if not set(value) <= set(ITEM_KEYS):
        raise invalid(f"{where}: unknown key; the keys are {', '.join(ITEM_KEYS)}")
    if "id" not in value:
        raise invalid(f"{where}: id is missing")
    return Item(
        check_id(value["id"], f"{where}.id"),
        tuple(_strings(value.get("text", []), f"{where}.text")),
        tuple(_media(value.get("image", []), f"{where}.image")),
        tuple(_media(value.get("audio", []), f"{where}.audio")),
        columns=check_columns(value.get("columns", {}), f"{where}.columns"),
    )


def check_id(value: Any, where: str) -> str:
    """Return an item's id.

    Raises:
        RequestError: 422, if it is not a string of 1 to :data:`MAX_ID_CHARACTERS` characters.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_CHARACTERS:
        raise invalid(f"{where}: must be a string of 1 to {MAX_ID_CHARACTERS} characters")
    return value


def check_columns(value: Any, where: str) -> Mapping[str, Any]:
    """Return an item's columns.

    Raises:
        RequestError: 422, if it is not an object of strings, finite numbers, booleans and null.
    """
    if not isinstance(value, dict):
        raise invalid(f"{where}: must be an object")
    for entry in value.values():
        if not (entry is None or isinstance(entry, str | bool | int) or (isinstance(entry, float) and math.isfinite(entry))):
            raise invalid(f"{where}: values must be strings, numbers, booleans or null")
    return value


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list):
        raise invalid(f"{where}: must be a list of strings")
    for index, entry in enumerate(value):
        if not isinstance(entry, str):
            raise invalid(f"{where}[{index}]: must be a string")
    return value


def _media(value: Any, where: str) -> list[bytes]:
    decoded = []
    for index, entry in enumerate(_strings(value, where)):
        try:
            decoded.append(binascii.a2b_base64(entry, strict_mode=True))
        except ValueError:  # also raised for characters beyond ASCII
            raise invalid(f"{where}[{index}]: must be base64 (RFC 4648, section 4), padded and without line breaks") from None
    return decoded
