"""Request bodies: read within limits, and parsed into items.

Bytes are counted as they arrive, for each body and for all bodies in memory. A body is JSON with several items or a form with
one. Errors name the place of a mistake, not the content.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vigil_data.decode.audio import seconds
from vigil_data.decode.image import size_of
from vigil_data.errors import MediaError, TooLargeError
from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError, busy, invalid, malformed, too_large
from vigil_serving.protocol.item_json import ITEM_KEYS, check_columns, check_id, item_from_json
from vigil_serving.protocol.strict_json import loads
from vigil_serving.server.settings import RequestLimits

MAX_FORM_PARTS = 512


class BodyMemoryBudget:
    """Budget for the bytes of all request bodies in memory.

    Args:
        max_bytes: the budget.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0

    @contextmanager
    def reservation(self) -> Iterator["Reservation"]:
        """Give an empty reservation for one body, which is released when the block ends."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.bytes -= reservation.bytes


class Reservation:
    """Bytes reserved for one request."""

    def __init__(self, budget: BodyMemoryBudget) -> None:
        self.budget, self.bytes = budget, 0

    def take(self, count: int) -> None:
        """Reserve more bytes.

        Raises:
            RequestError: 429, if the budget is used up.
        """
        if self.budget.bytes + count > self.budget.max_bytes:
            raise busy("the memory for request bodies is full; try again later")
        self.budget.bytes += count
        self.bytes += count


async def read_body(request: Request, max_bytes: int, timeout_seconds: float, reservation: Reservation) -> bytes:
    """Read a request's body.

    Args:
        request: its body is not read yet.
        max_bytes: maximum size of the body.
        timeout_seconds: maximum time for the body to arrive.
        reservation: counts the bytes.

    Raises:
        RequestError: if the body is too long, too slow, compressed or incomplete.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError(
            415, "Content-Encoding: compressed bodies are not supported; send the body uncompressed", "unsupported"
        )
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > max_bytes):
        raise _too_long(max_bytes)
    try:
        async with asyncio.timeout(timeout_seconds):
            return b"".join([chunk async for chunk in _chunks(request, max_bytes, reservation)])
    except TimeoutError:
        line = f"the body did not arrive within {timeout_seconds:g} seconds"
        raise RequestError(408, line, "slow", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise malformed("the body is incomplete") from None


async def _chunks(request: Request, max_bytes: int, reservation: Reservation) -> AsyncIterator[bytes]:
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > max_bytes:
            raise _too_long(max_bytes)
        reservation.take(len(chunk))
        yield chunk


def _too_long(max_bytes: int) -> RequestError:
    return too_large(f"the body has more than {max_bytes} bytes; send fewer or smaller items per request")


def parse_items(content_type: str, body: bytes, limits: RequestLimits) -> list[Item]:
    """Read the items of a request to ``/v1/score`` and check them against the limits.

    Args:
        content_type: value of the header Content-Type.
        body: the complete body.
        limits: limits of one request.

    Raises:
        RequestError: 400, 413, 415 or 422.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"application/json":
        items = _items_from_json(loads(body), limits)
    elif kind == b"multipart/form-data":
        items = [_item_from_form(body, options.get(b"boundary", b""))]
    else:
        raise RequestError(415, "Content-Type: send application/json or multipart/form-data", "unsupported")
    check_limits(items, limits)
    return items


def check_limits(items: list[Item], limits: RequestLimits) -> None:
    """Check items against the limits, reading only the headers of media; broken media pass and fail when they are decoded.

    Raises:
        RequestError: 413.
    """
    if sum(_characters(item) for item in items) > limits.characters:
        raise too_large(f"more than {limits.characters} characters in one request")
    if sum(len(item.image) + len(item.audio) for item in items) > limits.media:
        raise too_large(f"more than {limits.media} images and audio files in one request")
    if sum(_pixels(data) for item in items for data in item.image) > limits.pixels:
        raise too_large(f"more than {limits.pixels} pixels in the images of one request")
    if sum(_seconds(data) for item in items for data in item.audio) > limits.seconds:
        raise too_large(f"more than {limits.seconds:g} seconds of audio in one request")


def _items_from_json(value: Any, limits: RequestLimits) -> list[Item]:
    if not isinstance(value, dict) or set(value) != {"items"} or not isinstance(value["items"], list):
        raise invalid('the body must be an object with the single key "items", a list')
    if not value["items"]:
        raise invalid("items: empty; send at least one item")
    if len(value["items"]) > limits.items:
        raise too_large(f"items: more than {limits.items}; send them in several requests")
    return [item_from_json(item, f"items[{index}]") for index, item in enumerate(value["items"])]


def _item_from_form(body: bytes, boundary: bytes) -> Item:
    """Read one item from multipart/form-data: parts ``text``, ``image`` and ``audio``, each any number of times.

    ``id`` is optional (default: ``item``); ``columns`` is a JSON object. An empty file field is ignored, as browsers send one
    when no file is chosen.
    """
    fields: dict[str, list[bytes]] = {key: [] for key in ITEM_KEYS}
    for name, filename, data in _form_parts(body, boundary):
        if name not in fields:
            raise invalid(f"the form has an unknown part; the parts are {', '.join(ITEM_KEYS)}")
        if filename != b"" or data:
            fields[name].append(data)
    for key in ("id", "columns"):
        if len(fields[key]) > 1:
            raise invalid(f"{key}: given more than once")
    [item_id] = _texts(fields["id"], "id") or ["item"]
    columns = loads(fields["columns"][0], "columns") if fields["columns"] else {}
    return Item(
        check_id(item_id, "id"),
        tuple(_texts(fields["text"], "text")),
        tuple(fields["image"]),
        tuple(fields["audio"]),
        columns=check_columns(columns, "columns"),
    )


def _texts(values: list[bytes], where: str) -> list[str]:
    try:
        return [value.decode("utf-8") for value in values]
    except UnicodeDecodeError:
        raise malformed(f"{where}: not UTF-8") from None


def _form_parts(body: bytes, boundary: bytes) -> list[tuple[str, bytes | None, bytes]]:
    """Return name, file name (if any) and content of each part."""
    form = _FormCallbacks()
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
            raise malformed("Content-Type: the boundary of the form is missing")
        parser.write(body)
    except (FormParserError, ValueError):
        raise malformed("the form is not multipart/form-data with the boundary given in Content-Type") from None
    if not form.complete:
        raise malformed("the form ends before its last boundary")
    return form.parts


class _FormCallbacks:
    """Parts of a form, collected from the parser's callbacks."""

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
        if len(self.parts) == MAX_FORM_PARTS:
            raise too_large(f"the form has more than {MAX_FORM_PARTS} parts")
        kind, options = parse_options_header(self._disposition.decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise malformed("a part of the form has no name")
        self.parts.append((options[b"name"].decode("latin-1"), options.get(b"filename"), bytes(self._data)))

    def finish(self) -> None:
        self.complete = True


def _characters(item: Item) -> int:
    columns = sum(len(name) + len(str(value)) for name, value in item.columns.items())
    return len(item.id) + sum(max(len(text), 1) for text in item.text) + columns  # an empty text also costs time


def _pixels(data: bytes) -> int:
    try:
        width, height = size_of(data)
    except TooLargeError as error:
        raise too_large(str(error)) from None
    except MediaError:
        return 0
    return width * height


def _seconds(data: bytes) -> float:
    try:
        return seconds(data)
    except MediaError:
        return 0.0
