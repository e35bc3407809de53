"""The OpenAPI description: what every route takes, every status that it answers with, and the shape of each answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from vigil_serving.server.request_parsing import ID_LENGTH
from vigil_serving.server.schemas import EXAMPLE_DECISION, EXAMPLE_DIGEST, ref, schemas
from vigil_serving.server.settings import Settings

ERRORS = {
    400: "The body is not what its content type says, or broke off.",
    401: "The admin token is missing or wrong.",
    403: "Reloading over HTTP is off: the server was started without an admin token.",
    404: "There is no such model, or another version of it.",
    408: "The body did not arrive in time.",
    409: "A bundle is being loaded already.",
    413: "The request holds more than a limit allows.",
    415: "The content type is not offered, or the body is compressed.",
    422: "The body can be read and does not say what is asked for.",
    429: "The queue is full; come again after the seconds in Retry-After.",
    500: "Scoring failed on an item of this request; others are not touched.",
    503: "The bundle is loading, or the server is stopping; come again or go elsewhere.",
}
RETRY = {"Retry-After": {"description": "seconds", "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
SCORING = (400, 408, 413, 415, 422, 429, 500, 503)


def describe(settings: Settings) -> dict[str, Any]:
    """The whole description, as JSON.

    Args:
        settings: whose limits are part of it.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Vigil",
            "version": "1",
            "description": "Decides items with one bundle. Every error is an object with one line under `error`.",
        },
        "paths": {**_own(), **_health(), **_kserve()},
        "components": {
            "schemas": schemas(settings.limits),
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer", "description": "the admin token"}},
        },
    }


def _own() -> dict[str, Any]:
    score = _operation(
        "score",
        "Decide items, in the order given. An item whose media cannot be decoded gets a decision with the reason in `error`.",
        {200: _json(ref("Scored"), _scored_example())},
        SCORING,
    )
    score["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": ref("Request"),
                "examples": {"text": {"value": {"items": [{"id": "post-1", "text": ["call now and win"]}]}}},
            },
            "multipart/form-data": {
                "schema": ref("Form"),
                "encoding": {
                    "text": {"contentType": "text/plain"},
                    "image": {"contentType": "application/octet-stream"},
                    "audio": {"contentType": "application/octet-stream"},
                    "columns": {"contentType": "application/json"},
                },
            },
        },
    }
    reload = _operation(
        "reload",
        "Load another bundle beside the one that decides and let it decide from then on; a bad one is refused.",
        {200: _json(ref("Reloaded"))},
        (400, 401, 403, 408, 409, 413, 415, 422, 429, 503),
    )
    reload["security"] = [{"admin": []}]
    reload["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": ref("Reload"), "examples": {"path": {"value": {"bundle": "/srv/bundles/next"}}}}
        },
    }
    page = {"description": "HTML.", "content": {"text/html": {"schema": {"type": "string"}}}}
    return {
        "/": {"get": _operation("page", "A page to try the bundle out.", {200: page})},
        "/v1/score": {"post": score},
        "/v1/bundle": {
            "get": _operation("bundle", "Which bundle decides, and how.", {200: _json(ref("Bundle"))}, (503,)),
        },
        "/v1/reload": {"post": reload},
    }


def _health() -> dict[str, Any]:
    text = {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    status = ref("Status")
    return {
        "/health/live": {"get": _operation("live", "Whether the process answers.", {200: _json(status)})},
        "/health/ready": {
            "get": _operation(
                "ready", "Whether items are decided; not while loading or stopping.", {200: _json(status), 503: _json(status)}
            )
        },
        "/metrics": {"get": _operation("metrics", "Counters.", {200: text})},
    }


def _kserve() -> dict[str, Any]:
    def flag(name: str) -> dict[str, Any]:
        return {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}

    paths: dict[str, Any] = {
        "/v2": {"get": _operation("v2_server", "Server metadata.", {200: _json(ref("V2Server"))})},
        "/v2/health/live": {"get": _operation("v2_live", "Whether the process answers.", {200: _json(flag("live"))})},
        "/v2/health/ready": {
            "get": _operation("v2_ready", "Whether items are decided.", {n: _json(flag("ready")) for n in (200, 503)})
        },
    }
    name = _parameter("name", "the bundle's name")
    version = _parameter("version", "the first twelve characters of the bundle's digest")
    for prefix, parameters, suffix in (
        ("/v2/models/{name}", [name], ""),
        ("/v2/models/{name}/versions/{version}", [name, version], "_version"),
    ):
        ready: dict[int, Any] = {200: _json(ref("V2Ready")), 503: _json({"anyOf": [ref("V2Ready"), ref("Error")]})}
        operations = {
            "": ("get", _operation(f"v2_model{suffix}", "Model metadata.", {200: _json(ref("V2Model"))}, (404, 503))),
            "/ready": ("get", _operation(f"v2_model_ready{suffix}", "Whether the model decides.", ready, (404,))),
            "/infer": ("post", _infer(suffix)),
        }
        for rest, (method, operation) in operations.items():
            paths[prefix + rest] = {"parameters": parameters, method: operation}
    return paths


def _infer(suffix: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    answered = {
        "description": "The outputs; with Inference-Header-Content-Length, JSON of that length and binary data after it.",
        "headers": {"Inference-Header-Content-Length": {"schema": {"type": "string", "pattern": "^[0-9]+$"}}},
        "content": {"application/json": {"schema": ref("V2Response")}, "application/octet-stream": binary},
    }
    statuses = tuple(status for status in SCORING if status != 415)
    operation = _operation(
        f"v2_infer{suffix}",
        "Decide items (Open Inference Protocol). Each element of the input is an item as JSON.",
        {200: answered},
        (*statuses, 404, 415),
    )
    operation["parameters"] = [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "description": "bytes of the JSON, where binary data follow it",
            "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
        }
    ]
    element = '{"id": "post-1", "text": ["call now and win"]}'
    example = {"inputs": [{"name": "item", "datatype": "BYTES", "shape": [1], "data": [element]}]}
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": ref("V2Request"), "examples": {"text": {"value": example}}}},
    }
    return operation


def _operation(name: str, words: str, answers: Mapping[int, Any], errors: Sequence[int] = ()) -> dict[str, Any]:
    responses = {str(status): answer for status, answer in answers.items()}
    for status in sorted(errors):
        responses[str(status)] = {**_json(ref("Error")), "description": ERRORS[status]}
        if status in (429, 503):
            responses[str(status)]["headers"] = RETRY
    return {"operationId": name, "summary": words.partition(".")[0], "description": words, "responses": responses}


def _json(schema: Mapping[str, Any], example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["examples"] = {"one": {"value": example}}
    return {"description": "The answer.", "content": {"application/json": content}}


def _parameter(name: str, words: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": ID_LENGTH}
    return {"name": name, "in": "path", "required": True, "description": words, "schema": schema}


def _scored_example() -> dict[str, Any]:
    return {"bundle": "demo", "digest": EXAMPLE_DIGEST, "policy": "forum version 1", "decisions": [EXAMPLE_DECISION]}
