"""From bodies to items: JSON of several items, or a form of one; whatever is wrong is said with its place, not its content."""

import binascii
import math
from collections.abc import Mapping
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vigil_data.decode.audio import seconds
from vigil_data.decode.image import size_of
from vigil_data.errors import MediaError
from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError, invalid, malformed, too_large
from vigil_serving.protocol.strict_json import loads
from vigil_serving.server.settings import Limits

KEYS = ("id", "text", "image", "audio", "columns")
ID_LENGTH = 256
MAX_PARTS = 512


def parse(content_type: str, body: bytes, limits: Limits) -> list[Item]:
    """Read the items of a request to ``/v1/score`` and hold them against the limits.

    Args:
        content_type: the header.
        body: the whole body.
        limits: what a request may hold.

    Raises:
        RequestError: 400, 413, 415 or 422.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"application/json":
        items = from_json(loads(body), limits)
    elif kind == b"multipart/form-data":
        items = [from_form(body, options.get(b"boundary", b""))]
    else:
        raise RequestError(415, "Content-Type: send application/json or multipart/form-data", "unsupported")
    check(items, limits)
    return items


def from_json(value: Any, limits: Limits) -> list[Item]:
    """Read ``{"items": [...]}``.

    Raises:
        RequestError: 413 for too many items, 422 for any other shape.
    """
    if not isinstance(value, dict) or set(value) != {"items"} or not isinstance(value["items"], list):
        raise invalid('the body must be an object with the one key "items", a list')
    if not value["items"]:
        raise invalid("items: empty; send at least one item")
    if len(value["items"]) > limits.items:
        raise too_large(f"items: more than {limits.items}; send them in several requests")
    return [item_from_json(item, f"items[{n}]") for n, item in enumerate(value["items"])]


def item_from_json(value: Any, where: str) -> Item:
    """Read one item.

    Args:
        value: an object with ``id``, and any of ``text``, ``image``, ``audio`` and ``columns``.
        where: its name in messages.

    Raises:
        RequestError: 422, if it is anything else.
    """
    if not isinstance(value, dict):
        raise invalid(f"{where}: must be an object")
    if not set(value) <= set(KEYS):
        raise invalid(f"{where}: has an unknown key; the keys are {', '.join(KEYS)}")
    if "id" not in value:
        raise invalid(f"{where}: has no id")
    return Item(
        _id(value["id"], f"{where}.id"),
        tuple(_strings(value.get("text", []), f"{where}.text")),
        tuple(_media(value.get("image", []), f"{where}.image")),
        tuple(_media(value.get("audio", []), f"{where}.audio")),
        columns=_columns(value.get("columns", {}), f"{where}.columns"),
    )


def _id(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= ID_LENGTH:
        raise invalid(f"{where}: must be a string of 1 to {ID_LENGTH} characters")
    return value


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list):
        raise invalid(f"{where}: must be a list of strings")
    for place, entry in enumerate(value):
        if not isinstance(entry, str):
            raise invalid(f"{where}[{place}]: must be a string")
    return value


def _media(value: Any, where: str) -> list[bytes]:
    decoded = []
    for place, entry in enumerate(_strings(value, where)):
        try:
            decoded.append(binascii.a2b_base64(entry, strict_mode=True))
        except ValueError:  # characters beyond ASCII are one too
            raise invalid(f"{where}[{place}]: must be base64 (RFC 4648, section 4), padded and without line breaks") from None
    return decoded


def _columns(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"{where}: must be an object")
    for entry in value.values():
        if not (entry is None or isinstance(entry, str | bool | int) or (isinstance(entry, float) and math.isfinite(entry))):
            raise invalid(f"{where}: values must be strings, numbers, booleans or null")
    return value


def from_form(body: bytes, boundary: bytes) -> Item:
    """Read one item from multipart/form-data: parts ``text``, ``image`` and ``audio``, each any number of times.

    ``id`` is ``item`` if not given; ``columns`` is a JSON object. A file field that its user left empty is no picture or sound.

    Raises:
        RequestError: 400 if the form cannot be read, 422 if its parts are others.
    """
    fields: dict[str, list[bytes]] = {key: [] for key in KEYS}
    for name, filename, data in _parts(body, boundary):
        if name not in fields:
            raise invalid(f"the form has an unknown part; the parts are {', '.join(KEYS)}")
        if filename != b"" or data:
            fields[name].append(data)
    for key in ("id", "columns"):
        if len(fields[key]) > 1:
            raise invalid(f"{key}: given more than once")
    [item_id] = _texts(fields["id"], "id") or ["item"]
    columns = loads(fields["columns"][0], "columns") if fields["columns"] else {}
    return Item(
        _id(item_id, "id"),
        tuple(_texts(fields["text"], "text")),
        tuple(fields["image"]),
        tuple(fields["audio"]),
        columns=_columns(columns, "columns"),
    )


def _texts(values: list[bytes], where: str) -> list[str]:
    try:
        return [value.decode("utf-8") for value in values]
    except UnicodeDecodeError:
        raise malformed(f"{where}: not UTF-8") from None


def _parts(body: bytes, boundary: bytes) -> list[tuple[str, bytes | None, bytes]]:
    """The parts of a form: name, file name if it has one, content."""
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_part_data": form.part_data,
                "on_part_end": form.end,
                "on_end": form.finish,
            },
        )
        if not boundary:
            raise malformed("the form has no boundary in its Content-Type")
        parser.write(body)
    except (FormParserError, ValueError):
        raise malformed("the form is not multipart/form-data with the boundary that its Content-Type names") from None
    if not form.complete:
        raise malformed("the form breaks off before its last boundary")
    return form.parts


class _Form:
    """Gathers what the parser calls back with."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes | None, bytes]] = []
        self.complete = False
        self.begin()

    def begin(self) -> None:
        self._disposition, self._name, self._value, self._data = b"", bytearray(), bytearray(), bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def end(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise too_large(f"the form has more than {MAX_PARTS} parts")
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise malformed("a part of the form has no name")
        self.parts.append((options[b"name"].decode("latin-1"), options.get(b"filename"), bytes(self._data)))

    def finish(self) -> None:
        self.complete = True


def check(items: list[Item], limits: Limits) -> None:
    """Hold items against the limits, by headers alone; broken media pass, for decoding will say so of their item.

    Raises:
        RequestError: 413.
    """
    characters = sum(_characters(item) for item in items)
    if characters > limits.characters:
        raise too_large(f"more than {limits.characters} characters in one request")
    if sum(len(item.image) + len(item.audio) for item in items) > limits.media:
        raise too_large(f"more than {limits.media} pictures and sounds in one request")
    if sum(_pixels(data) for item in items for data in item.image) > limits.pixels:
        raise too_large(f"pictures of more than {limits.pixels} pixels together in one request")
    if sum(_seconds(data) for item in items for data in item.audio) > limits.seconds:
        raise too_large(f"sounds of more than {limits.seconds:g} seconds together in one request")


def _characters(item: Item) -> int:
    columns = sum(len(name) + len(str(value)) for name, value in item.columns.items())
    return len(item.id) + sum(max(len(text), 1) for text in item.text) + columns  # an empty text costs time, too


def _pixels(data: bytes) -> int:
    try:
        width, height = size_of(data)
    except MediaError:
        return 0
    return width * height


def _seconds(data: bytes) -> float:
    try:
        return seconds(data)
    except MediaError:
        return 0.0
