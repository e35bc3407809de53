"""Reading a body no further than allowed: its bytes are counted as they arrive, and so are those of all bodies in memory."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from vigil_serving.protocol.errors import RequestError, busy, malformed, too_large


class BodyMemoryBudget:
    """Bytes of bodies in memory, all requests together.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    @contextmanager
    def reservation(self) -> Iterator["Reservation"]:
        """Room for one body, given back when the block ends."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.bytes -= reservation.bytes


class Reservation:
    """The bytes that one request holds."""

    def __init__(self, held: BodyMemoryBudget) -> None:
        self.held, self.bytes = held, 0

    def take(self, count: int) -> None:
        """Reserve more.

        Raises:
            RequestError: if bodies fill the memory that is set aside for them.
        """
        if self.held.bytes + count > self.held.most:
            raise busy("the server holds as many bytes of requests as it may; try again later")
        self.held.bytes += count
        self.bytes += count


async def read(request: Request, most: int, seconds: float, reservation: Reservation) -> bytes:
    """Read a request's body.

    Args:
        request: its body is not read yet.
        most: bytes that it may have.
        seconds: how long it may take to arrive.
        reservation: counts what is read.

    Raises:
        RequestError: if it is too long, too slow, compressed, or breaks off.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError(415, "Content-Encoding: send the body as it is; compressed bodies are not read", "unsupported")
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > most):
        raise _too_long(most)
    try:
        async with asyncio.timeout(seconds):
            return b"".join([chunk async for chunk in _chunks(request, most, reservation)])
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {seconds:g} seconds", "slow", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise malformed("the body broke off") from None


async def _chunks(request: Request, most: int, reservation: Reservation) -> AsyncIterator[bytes]:
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > most:
            raise _too_long(most)
        reservation.take(len(chunk))
        yield chunk


def _too_long(most: int) -> RequestError:
    return too_large(f"the body has more than {most} bytes; send fewer or smaller items a request")
