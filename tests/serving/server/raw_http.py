"""Small HTTP client on sockets: cheap in large numbers, and able to send malformed HTTP."""

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Reply(NamedTuple):
    """A status, headers with names in lower case, and a body."""

    status: int
    headers: dict[str, str]
    body: bytes


class ConnectionLost(Exception):
    """The connection ended without a complete reply.

    Attributes:
        begun: part of a reply had arrived.
        refused: there was no connection, so the request was not sent.
    """

    def __init__(self, begun: bool, refused: bool = False) -> None:
        super().__init__(f"connection ended, reply begun: {begun}, refused: {refused}")
        self.begun, self.refused = begun, refused


@dataclass
class HttpConnection:
    """One connection, opened on first use and kept alive."""

    port: int
    reader: asyncio.StreamReader | None = field(default=None, init=False)
    writer: asyncio.StreamWriter | None = field(default=None, init=False)

    async def exchange(self, raw: bytes) -> Reply:
        """Send bytes and read one reply."""
        begun = False
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            assert self.reader is not None
            self.writer.write(raw)
            await self.writer.drain()
            line = await self.reader.readline()
            begun = bool(line)
            if not line:
                raise ConnectionLost(begun)
            headers = {}
            while (entry := await self.reader.readline()).strip():
                name, _, value = entry.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self.reader.read()
            if headers.get("connection") == "close":
                self.close()
            return Reply(int(line.split()[1]), headers, body)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            raise ConnectionLost(begun, refused=isinstance(error, ConnectionRefusedError)) from None
        except ConnectionLost:
            self.close()
            raise

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


def play(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, and let its connections close before the event loop does."""

    async def main() -> T:
        result = await work
        await asyncio.sleep(0.05)
        return result

    return asyncio.run(main())


def post(path: str, body: bytes, kind: str = "application/json", *headers: str) -> bytes:
    """Return a request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def score(*items: dict[str, Any]) -> bytes:
    return post("/v1/score", json.dumps({"items": items}).encode())
