"""Middleware around every request: access, admission, error responses, headers and request metrics."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vigil_serving.protocol.errors import RequestError, traceback_summary, unavailable
from vigil_serving.server.access import HEADERS, HEALTH_PATHS, PREFLIGHT_HEADERS, AccessControl
from vigil_serving.server.batching import ScoringError
from vigil_serving.server.metrics import ServerMetrics

_log = logging.getLogger("vigil.serve")

CLOSING = {"Connection": "close", "Retry-After": "5"}
OVER_LIMIT = "over_limit"
"""Key of a request's state: its connection was opened beyond the limit."""


class AdmissionController:
    """Admits scoring requests while a bundle is loaded and the server is not stopping, and counts them.

    Args:
        ready: whether a bundle is loaded.

    Attributes:
        draining: whether the server is stopping.
        in_flight: requests admitted and not answered yet.
        admitted: requests admitted so far.
    """

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self.draining = False
        self.in_flight = self.admitted = 0

    @property
    def open(self) -> bool:
        """Whether requests are admitted."""
        return self._ready() and not self.draining

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Admit one request, which is in flight until the block ends.

        Raises:
            RequestError: 503.
        """
        if self.draining:
            raise unavailable("the server is stopping; use another server", "draining")
        if not self._ready():
            raise unavailable("the bundle is loading; try again later", "loading")
        self.in_flight += 1
        self.admitted += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def drain(self, seconds: float) -> None:
        """Stop admitting requests and wait for those in flight.

        Args:
            seconds: maximum time to wait.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.in_flight and loop.time() < deadline:
            await asyncio.sleep(0.02)


def error_response(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error response, ``{"error": line}``, the form of the KServe protocol."""
    return Response(json.dumps({"error": line}), status, dict(headers or {}), "application/json")


class RequestMiddleware:
    """ASGI middleware around the routes.

    Args:
        app: the routes.
        access: checks who sends a request.
        admission: admits requests for decisions.
        metrics: counts requests.
    """

    def __init__(self, app: ASGIApp, access: AccessControl, admission: AdmissionController, metrics: ServerMetrics) -> None:
        self._app, self._access, self._admission, self._metrics = app, access, admission, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                closing = {"Connection": "close"} if self._admission.draining else {}
                added = {**HEADERS, **self._access.cors_headers(scope), **closing}
                encoded = [(name.lower().encode(), value.encode()) for name, value in added.items()]
                message["headers"] = [*message["headers"], *((name, value) for name, value in encoded if name not in given)]
            await send(message)

        try:
            self._access.check(scope)
            if scope.get("state", {}).get(OVER_LIMIT) and scope["path"] not in HEALTH_PATHS:
                raise RequestError(503, "too many connections; try again later", "connections", CLOSING)
            if self._access.is_preflight(scope):
                await Response(None, 204, PREFLIGHT_HEADERS)(scope, receive, send_with_headers)
                return
            await self._handle_admitted(scope, receive, send_with_headers)
        except (Exception, asyncio.CancelledError) as error:
            # uvicorn cancels requests that are open after the time to drain; they are answered with an error.
            if status or (isinstance(error, asyncio.CancelledError) and not self._admission.draining):
                raise
            await self._error_response(error)(scope, receive, send_with_headers)
        finally:
            self._metrics.request(scope.get("route_path", "unmatched"), status, time.perf_counter() - start)

    async def _handle_admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and (scope["path"] == "/v1/score" or scope["path"].endswith("/infer")):
            with self._admission.admit():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _error_response(self, error: BaseException) -> Response:
        if isinstance(error, asyncio.CancelledError):
            error = unavailable("the server has stopped; use another server", "draining")
        if isinstance(error, RequestError):
            self._metrics.refuse(error.reason)
            return error_response(error.status, error.line, error.headers)
        if isinstance(error, HTTPException):
            return error_response(error.status_code, str(error.detail), error.headers)
        if isinstance(error, ScoringError):
            return error_response(500, str(error))
        _log.error("a request failed: %s", traceback_summary(error))
        return error_response(500, "internal error; see the server's log")
