"""The local server of the review page: loopback only, one self-contained page, and a token that its address carries.

The token is behind ``#``, which a browser does not send; the page sends it in the header Authorization. Pages of other sites and
other users of the machine do not have it, so that they can neither read content nor answer (CSRF). Names other than loopback ones
in the header Host are refused (DNS rebinding).
"""

import json
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vigil_data.errors import Failure, UserError
from vigil_monitoring.reviews.page_session import ReviewSession
from vigil_serving.protocol.errors import RequestError, invalid, too_large
from vigil_serving.protocol.strict_json import loads
from vigil_serving.server.access import HEADERS, AccessControl, ApiKeys, content_security_policy

HOST = "127.0.0.1"
MAX_ANSWER_BYTES = 4096
PAGE = files("vigil_monitoring.reviews").joinpath("review_page.html").read_text(encoding="utf-8")
"""The page: one file that loads nothing from elsewhere and runs only its own script."""

Handler = Callable[[Request], Awaitable[Response]]


def create_app(session: ReviewSession, token: str) -> Starlette:
    """Return the ASGI application of a session.

    Args:
        session: what is shown and stored.
        token: sent with every request but that for the page.
    """
    policy = content_security_policy(PAGE)

    async def page(_: Request) -> Response:
        return Response(PAGE, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})

    async def setup(_: Request) -> Response:
        return _json(session.setup())

    async def order(request: Request) -> Response:
        return _json(await run_in_threadpool(session.order, _reviewer(request)))

    async def item(request: Request) -> Response:
        return _json(await run_in_threadpool(session.item, _reviewer(request), request.path_params["item"]))

    async def media(request: Request) -> Response:
        content, kind = await run_in_threadpool(session.media, *(request.path_params[of] for of in ("item", "modality", "place")))
        return Response(content, media_type=kind)

    async def answer(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise too_large(f"an answer has at most {MAX_ANSWER_BYTES} bytes")
        return _json(await run_in_threadpool(session.answer, loads(body)))

    routes: list[tuple[str, str, Handler]] = [
        ("/", "GET", page),
        ("/v1/setup", "GET", setup),
        ("/v1/items", "GET", order),
        ("/v1/items/{item:int}", "GET", item),
        ("/v1/items/{item:int}/{modality}/{place:int}", "GET", media),
        ("/v1/answers", "POST", answer),
    ]
    return Starlette(
        routes=[Route(path, handler, methods=[method]) for path, method, handler in routes],
        middleware=[Middleware(_Guard, access=AccessControl(HOST, ApiKeys([token])))],
        exception_handlers={RequestError: _refuse, HTTPException: _refuse, Failure: _fail},
    )


def serve(session: ReviewSession, port: int, announce: Callable[[str], None]) -> None:
    """Serve the page until SIGINT (Ctrl+C) or another signal.

    Args:
        session: what is shown and stored.
        port: port of the loopback interface; 0 is any free one.
        announce: called with the address of the page once it can be opened.

    Raises:
        UserError: if the port is taken.
    """
    token = secrets.token_urlsafe(24)
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {HOST} port {port}: {error.strerror}; choose another --port") from None
    announce(f"http://{HOST}:{listener.getsockname()[1]}/#{token}")
    config = uvicorn.Config(
        create_app(session, token),
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    with suppress(KeyboardInterrupt):  # how a reviewer stops it; uvicorn has closed the connections
        uvicorn.Server(config).run([listener])


class _Guard:
    """ASGI middleware that checks who sends a request, and adds headers to the response."""

    def __init__(self, app: ASGIApp, access: AccessControl) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            self._access.check(scope)
        except RequestError as error:
            line = _OWN_LINES.get(error.reason, error.line)
            await _error(error.status, line, error.headers)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


_OWN_LINES = {
    "host": "Host: the page is open on this machine only, as 127.0.0.1 or localhost; forward its port to read it elsewhere",
    "origin": "Origin: pages of other sites are refused",
    "unauthorised": "Open the address that `vigil monitor review` printed, with the part after #",
}


def _reviewer(request: Request) -> str:
    names = request.query_params.getlist("reviewer")
    if len(names) != 1:
        raise invalid("reviewer: must be given once")
    return names[0]


def _json(value: Any) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), media_type="application/json")


def _error(status: int, line: str, headers: Any = None) -> Response:
    return Response(json.dumps({"error": line}), status, dict(headers or {}), "application/json")


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        return _error(error.status, error.line, error.headers)
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail), error.headers)


async def _fail(_: Request, error: Exception) -> Response:
    return _error(507, f"not stored: {error}")
