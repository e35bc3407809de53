"""HTTP client of an LLM server: connections that stay open, retries, timeouts, and errors in one line."""

import json
import logging
import math
import random
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from vigil_data.errors import Failure, UserError, one_line

_log = logging.getLogger("vigil.guard")
Read = TypeVar("Read")

MAX_RESPONSE_BYTES = 8 << 20
MAX_WAIT_SECONDS = 30.0
"""Longest time between two attempts."""
RETRIED = (408, 409, 424, 425, 429, 500, 502, 503, 504)
"""Statuses after which a request is sent again; 424 is TGI's generation error."""
REFUSED = (400, 413, 422)
"""Statuses of a request that the server does not take."""


class MalformedResponse(Exception):  # noqa: N818 (the request is sent again)
    """A response without what was asked for; the message says what is wrong."""


class Refused(Exception):  # noqa: N818 (one request, in one form)
    """A request that the server does not take; the message has its reason."""


class _Retry(Exception):  # noqa: N818
    """An attempt that failed, and the seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How to reach a server.

    Attributes:
        url: its address, such as ``http://127.0.0.1:8000``; a path is put before the interface's own.
        api_key: sent as a bearer token.
        timeout: seconds that connecting, and waiting for bytes of a response, may take.
        retries: attempts after the first one.
        first_wait: seconds before the second attempt; each further wait is twice as long.
    """

    url: str
    api_key: str | None = None
    timeout: float = 120.0
    retries: int = 6
    first_wait: float = 0.5


class HttpClient:
    """Client that several threads use at once, each with a connection of its own that stays open.

    Args:
        settings: how to reach the server.

    Attributes:
        retried: number of attempts that failed and were made again.

    Raises:
        UserError: if the address is invalid.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self.retried = 0
        parts = urlsplit(settings.url)
        try:
            self._host, self._port = parts.hostname, parts.port
        except ValueError:
            self._host = None
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.username:
            raise UserError(f"--server {settings.url}: must be an address such as http://127.0.0.1:8000")
        self._secure, self._prefix = parts.scheme == "https", parts.path.rstrip("/").removesuffix("/v1")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: set[HTTPConnection] = set()
        self._closed = threading.Event()

    def close(self) -> None:
        """End all connections, and all waits between attempts."""
        self._closed.set()
        with self._lock:
            for connection in self._open:
                # Wakes a thread that waits for bytes; closing alone does not.
                with suppress(OSError, AttributeError):
                    connection.sock.shutdown(2)
                connection.close()
            self._open.clear()

    def request(self, method: str, path: str, read: Callable[[Any], Read], body: Mapping[str, Any] | None = None) -> Read:
        """Send a request, again if need be, and return what the response holds.

        Args:
            method: ``GET`` or ``POST``.
            path: path of the interface, such as ``/v1/completions``.
            read: reads the JSON of a response; it raises :class:`MalformedResponse` where it cannot.
            body: JSON to send.

        Raises:
            Refused: if the server does not take the request.
            UserError: if the server refuses access, or has no such path or model.
            Failure: if no attempt succeeded.
        """
        attempts = self.settings.retries + 1
        for attempt in range(attempts):
            try:
                return read(self._attempt(method, path, body))
            except (_Retry, MalformedResponse) as error:
                if self._closed.is_set() or attempt + 1 == attempts:
                    raise Failure(f"{self.settings.url}: {path}: {error}; {attempts} attempts failed") from None
                with self._lock:
                    self.retried += 1
                wait = min(self.settings.first_wait * 2**attempt, MAX_WAIT_SECONDS) * random.uniform(0.5, 1)  # noqa: S311
                after = error.after if isinstance(error, _Retry) else None
                _log.debug("%s: %s; attempt %d of %d follows", path, error, attempt + 2, attempts)
                self._closed.wait(wait if after is None else min(max(after, wait), MAX_WAIT_SECONDS))
        raise AssertionError("unreachable")

    def _attempt(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        connection = self._connection()
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.settings.api_key:
            headers["Authorization"] = f"Bearer {self.settings.api_key}"
        try:
            connection.request(method, self._prefix + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read(MAX_RESPONSE_BYTES + 1)
        except ssl.SSLCertVerificationError as error:
            raise UserError(f"{self.settings.url}: its certificate is not trusted: {one_line(error.verify_message)}") from None
        except (OSError, HTTPException) as error:  # refused, reset, timed out, cut off
            self._drop(connection)
            raise _Retry(_reason(error, self.settings.timeout)) from None
        if len(content) > MAX_RESPONSE_BYTES:
            self._drop(connection)
            raise UserError(
                f"{self.settings.url}{path}: a response of more than {MAX_RESPONSE_BYTES >> 20} MiB; is it an LLM server?"
            )
        try:
            return self._read(path, response, content)
        except _Retry:
            self._drop(connection)  # a body that was cut off leaves the connection unusable
            raise

    def _read(self, path: str, response: HTTPResponse, content: bytes) -> Any:
        status = response.status
        if status == 200:
            try:
                return json.loads(content)
            except ValueError:
                raise _Retry("a response that is not JSON, or was cut off") from None
        message = _message(content)
        where = f"{self.settings.url}{path}: status {status}{message and f' ({message})'}"
        if status in REFUSED:
            raise Refused(f"status {status}{message and f' ({message})'}")
        if status in (401, 403):
            raise UserError(f"{where}; set the variable that --api-key-env names to the server's API key")
        if status in RETRIED:
            raise _Retry(f"status {status}{message and f' ({message})'}", _seconds(response.getheader("Retry-After")))
        raise UserError(f"{where}; check --server, --api and --model")

    def _connection(self) -> HTTPConnection:
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None or connection not in self._open:
            kind = HTTPSConnection if self._secure else HTTPConnection
            assert self._host is not None
            connection = kind(self._host, self._port, timeout=self.settings.timeout)
            self._local.connection = connection
            with self._lock:
                self._open.add(connection)
        return connection

    def _drop(self, connection: HTTPConnection) -> None:
        connection.close()
        with self._lock:
            self._open.discard(connection)


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no response within {timeout:g} s"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(text)


def _message(content: bytes) -> str:
    """Return the server's reason, in one line of bounded length."""
    text = content[:4096].decode("utf-8", "replace")
    with suppress(ValueError):
        body = json.loads(content)
        error = body.get("error", body.get("detail", body.get("message", ""))) if isinstance(body, dict) else body
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    text = one_line(" ".join(text.split()))
    return text if len(text) <= 200 else f"{text[:199]}…"


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; its other form, a date, is ignored."""
    with suppress(TypeError, ValueError):
        seconds = float(header or "")
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    return None
