"""The routes of ``vigil serve``."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from vigil_data.errors import UserError
from vigil_serving.protocol.errors import RequestError, invalid
from vigil_serving.protocol.strict_json import loads
from vigil_serving.server import kserve
from vigil_serving.server.demo_page import PAGE, POLICY
from vigil_serving.server.middleware import Envelope, error
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.openapi import describe
from vigil_serving.server.request_parsing import parse
from vigil_serving.server.service import Service

MAX_RELOAD_BYTES = 8192


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a service; its lifespan starts and stops it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(title="Vigil", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False)
    description = describe(service.settings)
    app.openapi = lambda: description  # type: ignore[method-assign]
    app.add_middleware(Envelope, gate=service.gate, telemetry=service.telemetry)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    routes = Routes(service)
    for path, method, handler in routes.table():
        app.add_api_route(path, handler, methods=[method], include_in_schema=False)
    return app


async def _http_error(_: Request, raised: Exception) -> Response:
    """Of an unknown path or a method that a path does not have."""
    assert isinstance(raised, StarletteHTTPException)
    return error(raised.status_code, str(raised.detail), raised.headers)


class Routes:
    """The handlers; each takes the request alone, for what it may hold is checked here and described in :mod:`.openapi`.

    Args:
        service: answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def table(self) -> list[tuple[str, str, Callable[[Request], Any]]]:
        """Path, method and handler of every route."""
        model = "/v2/models/{name}"
        version = f"{model}/versions/{{version}}"
        return [
            ("/", "GET", self.page),
            ("/v1/score", "POST", self.score),
            ("/v1/bundle", "GET", self.bundle),
            ("/v1/reload", "POST", self.reload),
            ("/health/live", "GET", self.live),
            ("/health/ready", "GET", self.ready),
            ("/metrics", "GET", self.metrics),
            ("/v2", "GET", self.v2_server),
            ("/v2/health/live", "GET", self.v2_live),
            ("/v2/health/ready", "GET", self.v2_ready),
            *(
                (f"{prefix}{rest}", method, handler)
                for prefix in (model, version)
                for rest, method, handler in (
                    ("", "GET", self.v2_model),
                    ("/ready", "GET", self.v2_model_ready),
                    ("/infer", "POST", self.v2_infer),
                )
            ),
        ]

    async def page(self, _: Request) -> Response:
        """The page to try the bundle out."""
        return Response(PAGE, headers={"Content-Security-Policy": POLICY}, media_type="text/html")

    async def score(self, request: Request) -> Response:
        """Decide items."""
        async with self._service.body(request) as body:
            kind = request.headers.get("content-type", "")
            items = await self._service.parsed(len(body), parse, kind, body, self._service.settings.limits)
            answer = await self._service.score(request, items)
        loaded = answer.loaded
        policy = loaded.policy
        decisions = [decision.to_dict() for decision in answer.decisions]
        return _json({"bundle": loaded.name, "digest": loaded.digest, "policy": policy, "decisions": decisions})

    async def bundle(self, _: Request) -> Response:
        """Which bundle decides, and how."""
        return _json(_facts(self._service, self._service.bundles.current()))

    async def reload(self, request: Request) -> Response:
        """Load another bundle."""
        token, bundles = self._service.settings.admin_token, self._service.bundles
        if token is None:
            raise RequestError(403, "reloading over HTTP is off; start the server with an admin token", "forbidden")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise RequestError(401, "Authorization: the admin token is asked for", "unauthorised", {"WWW-Authenticate": "Bearer"})
        path = await self._reload_path(request)
        before = bundles.current().digest
        try:
            loaded = await asyncio.shield(bundles.reload(path))
        except UserError as refused:
            raise invalid(" ".join(str(refused).split())) from None
        return _json({"bundle": loaded.name, "digest": loaded.digest, "before": before})

    async def _reload_path(self, request: Request) -> Path:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "Content-Type: send application/json", "unsupported")
        async with self._service.body(request) as body:
            value = loads(body) if len(body) <= MAX_RELOAD_BYTES else None
        if not isinstance(value, dict) or set(value) != {"bundle"} or not isinstance(value["bundle"], str):
            raise invalid('the body must be an object with the one key "bundle", the folder\'s path on the server')
        if not value["bundle"] or "\0" in value["bundle"]:
            raise invalid("bundle: not a path")
        return Path(value["bundle"])

    async def live(self, _: Request) -> Response:
        """The process answers."""
        return _json({"status": "live"})

    async def ready(self, _: Request) -> Response:
        """Items are decided."""
        gate = self._service.gate
        status = "draining" if gate.draining else "ready" if gate.open else "loading"
        return _json({"status": status}, 200 if gate.open else 503)

    async def metrics(self, _: Request) -> Response:
        """Counters in Prometheus's text format."""
        return Response(self._service.telemetry.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def v2_server(self, _: Request) -> Response:
        """Server metadata."""
        from importlib.metadata import version

        return _json({"name": "vigil", "version": version("vigil"), "extensions": list(kserve.EXTENSIONS)})

    async def v2_live(self, _: Request) -> Response:
        """The process answers."""
        return _json({"live": True})

    async def v2_ready(self, _: Request) -> Response:
        """Items are decided."""
        return _json({"ready": self._service.gate.open}, 200 if self._service.gate.open else 503)

    async def v2_model(self, request: Request) -> Response:
        """Model metadata."""
        return _json(kserve.metadata(self._model(request)))

    async def v2_model_ready(self, request: Request) -> Response:
        """The model decides."""
        loaded = self._model(request)
        return _json({"name": loaded.name, "ready": self._service.gate.open}, 200 if self._service.gate.open else 503)

    async def v2_infer(self, request: Request) -> Response:
        """Decide items."""
        self._model(request)
        async with self._service.body(request) as body:
            length = request.headers.get("inference-header-content-length")
            inference = await self._service.parsed(len(body), kserve.parse, body, length, self._service.settings.limits)
            answer = await self._service.score(request, inference.items)
        _same_version(request, answer.loaded)
        content, head = kserve.render(inference, answer)
        if head is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={"Inference-Header-Content-Length": str(head)}, media_type="application/octet-stream")

    def _model(self, request: Request) -> LoadedBundle:
        """The bundle that a path speaks of."""
        loaded = self._service.bundles.current()
        if request.path_params["name"] != loaded.name:
            raise RequestError(404, "no such model; GET /v1/bundle names the one that there is", "unknown")
        _same_version(request, loaded)
        return loaded


def _same_version(request: Request, loaded: LoadedBundle) -> None:
    if request.path_params.get("version", loaded.version) != loaded.version:
        raise RequestError(404, "no such version; GET /v2/models/NAME names the one that there is", "unknown")


def _facts(service: Service, loaded: LoadedBundle) -> dict[str, Any]:
    bundle, limits = loaded.scorer.bundle, service.settings.limits
    policy = bundle.policy
    return {
        "name": loaded.name,
        "digest": loaded.digest,
        "version": loaded.version,
        "variant": loaded.scorer.variant,
        "modalities": list(bundle.signature.modalities),
        "labels": list(bundle.signature.labels),
        "thresholds": dict(bundle.thresholds),
        "policy": None
        if policy is None
        else {"name": policy.name, "version": policy.version, "digest": policy.digest, "actions": list(policy.actions)},
        "shadow": None if service.shadow is None else service.shadow.loaded.digest,
        "reload": "loading" if service.bundles.busy else "refused" if service.bundles.refused else "idle",
        "limits": {name: getattr(limits, name) for name in ("bytes", "items", "media", "pixels", "seconds", "characters")},
    }


def _json(value: Any, status: int = 200) -> Response:
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(content, status, media_type="application/json")
