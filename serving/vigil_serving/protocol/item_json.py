"""Items from JSON: one reader for the HTTP server and for Triton's Python backend.

Example:
    >>> item_from_json({"id": "post-1", "text": ["call now"], "columns": {"market": "DE"}}, "items[0]")
    >>> item_from_json({"id": "2", "text": [{"role": "title", "text": "News"}, "call now"]}, "items[1]").role("text", 0)
    'title'
"""

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

from vigil_data.items import BODY, CONTENT_KEYS, MODALITIES, Item, Modality, Role, Time, read_segments
from vigil_serving.protocol.errors import invalid

ITEM_KEYS = ("id", "text", "image", "audio", "columns")
MAX_ID_CHARACTERS = 256


def item_from_json(value: Any, where: str) -> Item:
    """Read one item.

    Args:
        value: an object with ``id``, and any of ``text`` (strings), ``image`` and ``audio`` (base64) and ``columns`` (scalars).
            In place of a string there may be an object with a role, the content under ``text`` or ``data``, and a text's
            time; see :func:`vigil_data.items.read_segments`.
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
    item_id = check_id(value["id"], f"{where}.id")
    contents: dict[Modality, list[Any]] = {}
    roles: dict[Modality, tuple[Role, ...]] = {}
    times: dict[Modality, tuple[Time | None, ...]] = {}
    for modality in MODALITIES:
        place, given = f"{where}.{modality}", value.get(modality, [])
        if not isinstance(given, list):
            raise invalid(f"{place}: must be a list of strings or objects")
        try:
            contents[modality], of, times[modality] = read_segments(given, modality, CONTENT_KEYS[modality])
        except ValueError as error:
            raise invalid(f"{place}{error}") from None
        roles |= {modality: of} if of else {}
    return Item(
        item_id,
        tuple(_strings(contents["text"], f"{where}.text")),
        tuple(_media(contents["image"], f"{where}.image")),
        tuple(_media(contents["audio"], f"{where}.audio")),
        columns=check_columns(value.get("columns", {}), f"{where}.columns"),
        roles=roles,
        times=times["text"],
    )


def item_to_json(item: Item) -> dict[str, Any]:
    """Return an item as :func:`item_from_json` reads it, without targets."""

    def segment(modality: Modality, index: int, content: str | bytes) -> Any:
        shown = content if isinstance(content, str) else base64.b64encode(content).decode("ascii")
        role, time = item.role(modality, index), item.time(modality, index)
        if role == BODY and time is None:
            return shown
        seconds = {} if time is None else {"start": time[0], "end": time[1]}
        return {"role": role, CONTENT_KEYS[modality]: shown, **seconds}

    media: dict[str, Any] = {m: [segment(m, *entry) for entry in enumerate(getattr(item, m))] for m in MODALITIES}
    return {"id": item.id, **media, **({"columns": dict(item.columns)} if item.columns else {})}


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


def _strings(value: list[Any], where: str) -> list[str]:
    for index, entry in enumerate(value):
        if not isinstance(entry, str):
            raise invalid(f"{where}[{index}]: must be a string")
    return value


def _media(value: list[Any], where: str) -> list[bytes]:
    decoded = []
    for index, entry in enumerate(_strings(value, where)):
        try:
            decoded.append(binascii.a2b_base64(entry, strict_mode=True))
        except ValueError:  # also raised for characters beyond ASCII
            raise invalid(f"{where}[{index}]: must be base64 (RFC 4648, section 4), padded and without line breaks") from None
    return decoded
