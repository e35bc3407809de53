"""What surrounds every request: who is let in, how errors look, which headers go out, and what is counted."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vigil_serving.protocol.errors import RequestError, unavailable
from vigil_serving.server.admission import Gate
from vigil_serving.server.batching import ScoringError, origin
from vigil_serving.server.metrics import Telemetry

_log = logging.getLogger("vigil.serve")

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def error(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says why there is no other: ``{"error": line}``, as the KServe protocol has it too."""
    return Response(json.dumps({"error": line}), status, dict(headers or {}), "application/json")


class Envelope:
    """ASGI middleware around the routes.

    Args:
        app: the routes.
        gate: lets requests in that ask for decisions.
        telemetry: counts.
    """

    def __init__(self, app: ASGIApp, gate: Gate, telemetry: Telemetry) -> None:
        self._app, self._gate, self._telemetry = app, gate, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                further = dict(HEADERS) | ({"Connection": "close"} if self._gate.draining else {})
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in further.items()
                        if name.lower().encode() not in given
                    ),
                ]
            await send(message)

        try:
            await self._admitted(scope, receive, sending)
        except (Exception, asyncio.CancelledError) as raised:
            # Who is still open when the time to drain is over is cancelled, and told so.
            if status or (isinstance(raised, asyncio.CancelledError) and not self._gate.draining):
                raise
            await self._answer(raised)(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", None) or "unmatched"
            self._telemetry.request(route, status, time.perf_counter() - begun)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and (scope["path"] == "/v1/score" or scope["path"].endswith("/infer")):
            with self._gate.admit():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _answer(self, raised: BaseException) -> Response:
        if isinstance(raised, asyncio.CancelledError):
            raised = unavailable("the server has stopped; send this to another one", "draining")
        if isinstance(raised, RequestError):
            self._telemetry.refuse(raised.reason)
            return error(raised.status, raised.line, raised.headers)
        if isinstance(raised, HTTPException):
            return error(raised.status_code, str(raised.detail), raised.headers)
        if isinstance(raised, ScoringError):
            return error(500, str(raised))
        _log.error("a request failed: %s", origin(raised))
        return error(500, "the server failed; its log says where")
