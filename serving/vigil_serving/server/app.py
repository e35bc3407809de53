"""Starlette application of ``vigil serve``: routes and their handlers."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from vigil_data.errors import UserError
from vigil_serving.protocol.errors import RequestError, invalid
from vigil_serving.protocol.strict_json import loads
from vigil_serving.server import kserve
from vigil_serving.server.access import bearer_token, content_security_policy
from vigil_serving.server.api_types import (
    BundleInfo,
    ModelReady,
    PolicyInfo,
    ReloadResponse,
    ScoreResponse,
    ServerLive,
    ServerMetadata,
    ServerReady,
    StatusResponse,
)
from vigil_serving.server.middleware import RequestMiddleware, error_response
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.openapi import openapi_document
from vigil_serving.server.request_body import parse_items
from vigil_serving.server.service import Service

MAX_RELOAD_BYTES = 8192

PAGE = files("vigil_serving.server").joinpath("demo_page.html").read_text(encoding="utf-8")
"""The page to try a bundle: one file that loads nothing from elsewhere and runs only its own script."""


CONTENT_SECURITY_POLICY = content_security_policy(PAGE)


Handler = Callable[[Request], Awaitable[Response]]


def create_app(service: Service) -> Starlette:
    """Return the ASGI application of a service; its lifespan starts and stops the service."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = Starlette(
        routes=[ApiRoute(path, method, handler) for path, method, handler in Endpoints(service).table()],
        middleware=[Middleware(RequestMiddleware, access=service.access, admission=service.admission, metrics=service.metrics)],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


async def _http_error(_: Request, error: Exception) -> Response:
    """Answer a request with an unknown path or method."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), error.headers)


class ApiRoute(Route):
    """A route with one method, without HEAD; the metrics middleware reads its path template from the scope."""

    def __init__(self, path: str, method: str, handler: Handler) -> None:
        super().__init__(path, handler)
        self.methods = {method}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as Starlette does, and add the path template to the scope."""
        match, child_scope = super().matches(scope)
        return match, child_scope if match is Match.NONE else {**child_scope, "route_path": self.path}


class Endpoints:
    """Handlers of all routes; :mod:`vigil_serving.server.openapi` documents them.

    Args:
        service: parts of the server.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._openapi = openapi_document(service.settings)

    def table(self) -> list[tuple[str, str, Handler]]:
        """Return path, method and handler of every route."""
        model = "/v2/models/{name}"
        routes: list[tuple[str, str, Handler]] = [
            ("/", "GET", self.page),
            ("/openapi.json", "GET", self.openapi),
            ("/v1/score", "POST", self.score),
            ("/v1/bundle", "GET", self.bundle),
            ("/v1/reload", "POST", self.reload),
            ("/health/live", "GET", self.live),
            ("/health/ready", "GET", self.ready),
            ("/metrics", "GET", self.metrics),
            ("/v2", "GET", self.v2_server),
            ("/v2/health/live", "GET", self.v2_live),
            ("/v2/health/ready", "GET", self.v2_ready),
        ]
        for prefix in (model, f"{model}/versions/{{version}}"):
            routes += [
                (prefix, "GET", self.v2_model),
                (f"{prefix}/ready", "GET", self.v2_model_ready),
                (f"{prefix}/infer", "POST", self.v2_infer),
            ]
        return routes

    async def page(self, _: Request) -> Response:
        """Return the page to try the bundle."""
        return Response(PAGE, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY}, media_type="text/html")

    async def openapi(self, _: Request) -> Response:
        """Return the OpenAPI document."""
        return _json(self._openapi)

    async def score(self, request: Request) -> Response:
        """Decide items."""
        async with self._service.body(request) as body:
            content_type = request.headers.get("content-type", "")
            items = await self._service.parsed(len(body), parse_items, content_type, body, self._service.settings.limits)
            result = await self._service.score(request, items)
        loaded = result.loaded
        return _json(ScoreResponse(loaded.name, loaded.digest, loaded.policy, result.decisions))

    async def bundle(self, _: Request) -> Response:
        """Return which bundle decides."""
        return _json(_bundle_info(self._service, self._service.models.current()))

    async def reload(self, request: Request) -> Response:
        """Load another bundle."""
        token, models = self._service.settings.admin_token, self._service.models
        if token is None:
            raise RequestError(403, "reloading over HTTP is off; start the server with an admin token", "forbidden")
        given = bearer_token(request.headers.get("authorization", ""))
        if given is None or not hmac.compare_digest(given, token.encode()):
            raise RequestError(
                401, "Authorization: send the admin token as Bearer", "unauthorised", {"WWW-Authenticate": "Bearer"}
            )
        path = await self._reload_path(request)
        before = models.current().digest
        try:
            loaded = await asyncio.shield(models.reload(path))
        except UserError as refused:
            raise invalid(" ".join(str(refused).split())) from None
        return _json(ReloadResponse(loaded.name, loaded.digest, before))

    async def _reload_path(self, request: Request) -> Path:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "Content-Type: send application/json", "unsupported")
        async with self._service.body(request) as body:
            value = loads(body) if len(body) <= MAX_RELOAD_BYTES else None
        if not isinstance(value, dict) or set(value) != {"bundle"} or not isinstance(value["bundle"], str):
            raise invalid('the body must be an object with the single key "bundle", the path of a folder on the server')
        if not value["bundle"] or "\0" in value["bundle"]:
            raise invalid("bundle: must be a path")
        return Path(value["bundle"])

    async def live(self, _: Request) -> Response:
        """Answer that the process is alive."""
        return _json(StatusResponse("live"))

    async def ready(self, _: Request) -> Response:
        """Answer whether items are decided."""
        admission = self._service.admission
        if admission.open:
            return _json(StatusResponse("ready"))
        return _json(StatusResponse("draining" if admission.draining else "loading"), 503)

    async def metrics(self, _: Request) -> Response:
        """Return the metrics in Prometheus text format."""
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def v2_server(self, _: Request) -> Response:
        """Return server metadata."""
        from importlib.metadata import version

        return _json(ServerMetadata("vigil", version("vigil"), kserve.EXTENSIONS))

    async def v2_live(self, _: Request) -> Response:
        """Answer that the process is alive."""
        return _json(ServerLive(live=True))

    async def v2_ready(self, _: Request) -> Response:
        """Answer whether items are decided."""
        ready = self._service.admission.open
        return _json(ServerReady(ready), 200 if ready else 503)

    async def v2_model(self, request: Request) -> Response:
        """Return model metadata."""
        return _json(kserve.model_metadata(self._model(request)))

    async def v2_model_ready(self, request: Request) -> Response:
        """Answer whether the model decides."""
        loaded, ready = self._model(request), self._service.admission.open
        return _json(ModelReady(loaded.name, ready), 200 if ready else 503)

    async def v2_infer(self, request: Request) -> Response:
        """Decide items."""
        self._model(request)
        async with self._service.body(request) as body:
            length = request.headers.get("inference-header-content-length")
            inference = await self._service.parsed(len(body), kserve.parse, body, length, self._service.settings.limits)
            result = await self._service.score(request, inference.items)
        _check_version(request, result.loaded)
        content, json_length = kserve.render(inference, result)
        if json_length is None:
            return Response(content, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(json_length)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    def _model(self, request: Request) -> LoadedBundle:
        """Return the bundle that the path names."""
        loaded = self._service.models.current()
        if request.path_params["name"] != loaded.name:
            raise RequestError(404, "no such model; GET /v1/bundle returns the name of the loaded one", "unknown")
        _check_version(request, loaded)
        return loaded


def _check_version(request: Request, loaded: LoadedBundle) -> None:
    if request.path_params.get("version", loaded.version) != loaded.version:
        raise RequestError(404, "no such version; GET /v2/models/NAME returns the loaded one", "unknown")


def _bundle_info(service: Service, loaded: LoadedBundle) -> BundleInfo:
    bundle, models = loaded.scorer.bundle, service.models
    policy = bundle.policy
    return BundleInfo(
        name=loaded.name,
        digest=loaded.digest,
        version=loaded.version,
        variant=loaded.scorer.variant,
        modalities=bundle.metadata.modalities,
        labels=bundle.metadata.labels,
        thresholds=dict(bundle.thresholds),
        policy=None if policy is None else PolicyInfo(policy.name, policy.version, policy.digest, policy.actions),
        shadow=None if service.shadow is None else service.shadow.loaded.digest,
        reload="loading" if models.busy else "refused" if models.refused else "idle",
        limits=_fields(service.settings.limits),
        policy_text={} if bundle.prompt is None else {clause.label: clause.digest for clause in bundle.prompt.clauses},
        not_evaluated=bundle.not_evaluated,
        uncalibrated=bundle.uncalibrated,
    )


def _json(value: object, status: int = 200) -> Response:
    content = json.dumps(value, default=_fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(content, status, media_type="application/json")


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass; its values are not copied."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
