"""OpenAPI document: paths and status codes of every route, with JSON Schemas generated from :mod:`.api_types`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter

from vigil_serving.protocol.item_json import MAX_ID_CHARACTERS
from vigil_serving.server.access import HEALTH_PATHS, KEYLESS_PATHS
from vigil_serving.server.api_types import EXTENSIBLE, RESPONSES, WITH_OPTIONAL_KEYS
from vigil_serving.server.settings import RequestLimits, ServerSettings

ERRORS = {
    400: "The body does not match its content type, or is incomplete.",
    401: "The admin token is missing or wrong.",
    403: "Reloading over HTTP is off: the server was started without an admin token.",
    404: "There is no such model, or no such version of it.",
    408: "The body did not arrive in time.",
    409: "A bundle is being loaded already.",
    413: "The request exceeds a limit.",
    415: "The content type is not supported, or the body is compressed.",
    422: "The body has missing or wrong values.",
    429: "The queue is full; retry after the seconds in Retry-After.",
    500: "Scoring failed on an item of this request; other requests are not affected.",
    503: "The bundle is loading, or the server is stopping; retry later or use another server.",
}
RETRY = {"Retry-After": {"description": "seconds", "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
SCORING_ERRORS = (400, 408, 413, 415, 422, 429, 500, 503)
EXAMPLE_ITEM = {"id": "post-1", "text": ["call now and win"]}
EXAMPLE_RESPONSE = {
    "bundle": "demo",
    "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "policy": "forum version 1",
    "decisions": [
        {
            "id": "post-1",
            "probabilities": {"promotion": 0.91, "tobacco": 0.03},
            "labels": ["promotion"],
            "presence": "text",
            "action": "limit",
            "review": False,
            "reasons": [{"label": "promotion", "action": "limit", "probability": 0.91, "threshold": 0.8}],
            "evidence": [
                {
                    "label": "promotion",
                    "modality": "text",
                    "span": {"index": 0, "start": 0, "stop": 16, "role": "body", "time": None},
                    "weight": 0.88,
                }
            ],
            "cut": 0,
            "error": None,
            "truncated": [],
            "policy_text": {},
            "not_evaluated": [],
            "uncalibrated": [],
            "spans": [{"label": "promotion", "index": 0, "start": 0, "stop": 8, "probability": 0.93}],
        }
    ],
}


def openapi_document(settings: ServerSettings) -> dict[str, Any]:
    """Return the OpenAPI document as JSON.

    Args:
        settings: its limits are part of the schemas.
    """
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Vigil",
            "version": "1",
            "description": "Decides items with one bundle. Every error is an object with one line under `error`. "
            "On every path but the health checks a foreign Host gets 421 and a foreign Origin 403.",
        },
        "paths": {**_score_paths(), **_health_paths(), **_kserve_paths()},
        "components": {
            "schemas": _schemas(settings.limits),
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer", "description": "the admin token"}},
        },
    }
    if settings.needs_key:
        _add_api_key(document)
    return document


def _add_api_key(document: dict[str, Any]) -> None:
    """Add the API key to every operation that needs it."""
    document["components"]["securitySchemes"]["key"] = {"type": "http", "scheme": "bearer", "description": "an API key"}
    for path in document["paths"].keys() - HEALTH_PATHS - KEYLESS_PATHS:
        for method in document["paths"][path].keys() & {"get", "post"}:
            operation = document["paths"][path][method]
            operation["security"] = [{"key": []}]
            operation["responses"]["401"] = {**_json("ErrorResponse"), "description": "The API key is missing or wrong."}


def _schemas(limits: RequestLimits) -> dict[str, Any]:
    """Return the JSON Schema of each type by name."""
    responses = _generate(RESPONSES)
    for schema in responses.values():
        schema["required"] = list(schema["properties"])
    schemas = responses | _generate(WITH_OPTIONAL_KEYS)
    for name, schema in schemas.items():
        if name not in EXTENSIBLE:
            schema["additionalProperties"] = False
        _move_attribute_docs(schema)
    decision, item, tensor = (schemas[name]["properties"] for name in ("Decision", "ScoreItem", "InferInput"))
    decision["probabilities"]["additionalProperties"] |= {"minimum": 0, "maximum": 1}
    for count in (decision["cut"], schemas["Span"]["properties"]["index"]):
        count["minimum"] = 0
    item["image"]["maxItems"] = item["audio"]["maxItems"] = limits.media
    tensor["shape"]["items"]["maximum"] = tensor["data"]["maxItems"] = limits.items
    schemas["ScoreRequest"]["properties"]["items"]["maxItems"] = limits.items
    schemas["ScoreRequest"]["description"] = (
        f"Items to decide; at most {limits.media} images and audio files, {limits.pixels} pixels, {limits.seconds:g} seconds and "
        f"{limits.characters} characters in all, in at most {limits.bytes} bytes."
    )
    return schemas


def _generate(types: Sequence[type]) -> dict[str, Any]:
    adapters: list[tuple[type, Literal["validation"], TypeAdapter[Any]]] = [(t, "validation", TypeAdapter(t)) for t in types]
    _, generated = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = generated["$defs"]
    return schemas


def _move_attribute_docs(schema: dict[str, Any]) -> None:
    """Move the descriptions of attributes from a dataclass docstring to the properties, and drop titles and defaults."""
    schema.pop("title", None)
    description, _, attributes = schema["description"].replace("``", "`").partition("\n\nAttributes:\n")
    schema["description"] = description
    for prop in schema["properties"].values():
        prop.pop("title", None)
        prop.pop("default", None)
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
        schema["properties"][name].setdefault("description", " ".join(text.split()))


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _score_paths() -> dict[str, Any]:
    score = _operation(
        "score",
        "Decide items, in the order given. An item whose media cannot be decoded has the reason in `error`.",
        {200: _json("ScoreResponse", EXAMPLE_RESPONSE)},
        SCORING_ERRORS,
    )
    score["requestBody"] = _body("ScoreRequest", {"items": [EXAMPLE_ITEM]})
    files = {"contentType": "application/octet-stream"}
    encoding = {
        "text": {"contentType": "text/plain"},
        "image": files,
        "audio": files,
        "columns": {"contentType": "application/json"},
    }
    score["requestBody"]["content"]["multipart/form-data"] = {"schema": _ref("ScoreForm"), "encoding": encoding}
    reload = _operation(
        "reload",
        "Load another bundle while the current one decides, and switch to it. A bundle that fails its checks is refused.",
        {200: _json("ReloadResponse")},
        (400, 401, 403, 408, 409, 413, 415, 422, 429, 503),
    )
    reload["security"] = [{"admin": []}]
    reload["requestBody"] = _body("ReloadRequest", {"bundle": "/srv/bundles/next"})
    page = {"description": "HTML.", "content": {"text/html": {"schema": {"type": "string"}}}}
    bundle = _operation("bundle", "Bundle that decides, and its settings.", {200: _json("BundleInfo")}, (503,))
    return {
        "/": {"get": _operation("page", "Page to try the bundle.", {200: page})},
        "/v1/score": {"post": score},
        "/v1/bundle": {"get": bundle},
        "/v1/reload": {"post": reload},
    }


def _health_paths() -> dict[str, Any]:
    text = {"description": "Prometheus text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    live, ready = _json("StatusResponse"), {status: _json("StatusResponse") for status in (200, 503)}
    return {
        "/health/live": {"get": _operation("live", "Whether the process answers.", {200: live})},
        "/health/ready": {"get": _operation("ready", "Whether items are decided; not while loading or stopping.", ready)},
        "/metrics": {"get": _operation("metrics", "Counters, gauges and histograms.", {200: text})},
    }


def _kserve_paths() -> dict[str, Any]:
    ready = {status: _json("ServerReady") for status in (200, 503)}
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("v2_server", "Server metadata.", {200: _json("ServerMetadata")})},
        "/v2/health/live": {"get": _operation("v2_live", "Whether the process answers.", {200: _json("ServerLive")})},
        "/v2/health/ready": {"get": _operation("v2_ready", "Whether items are decided.", ready)},
    }
    name = _path_parameter("name", "the bundle's name")
    version = _path_parameter("version", "first twelve characters of the bundle's digest")
    not_ready = {**_json("ModelReady"), "content": _content({"anyOf": [_ref("ModelReady"), _ref("ErrorResponse")]})}
    model_ready = {200: _json("ModelReady"), 503: not_ready}
    for prefix, parameters, suffix in (
        ("/v2/models/{name}", [name], ""),
        ("/v2/models/{name}/versions/{version}", [name, version], "_version"),
    ):
        metadata = _operation(f"v2_model{suffix}", "Model metadata.", {200: _json("ModelMetadata")}, (404, 503))
        operations = {
            "": ("get", metadata),
            "/ready": ("get", _operation(f"v2_model_ready{suffix}", "Whether the model decides.", model_ready, (404,))),
            "/infer": ("post", _infer(suffix)),
        }
        for rest, (method, operation) in operations.items():
            paths[prefix + rest] = {"parameters": parameters, method: operation}
    return paths


def _infer(suffix: str) -> dict[str, Any]:
    header = "Inference-Header-Content-Length"
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    response = {
        "description": f"The outputs; with {header}, JSON of that length and binary data after it.",
        "headers": {header: {"schema": {"type": "string", "pattern": "^[0-9]+$"}}},
        "content": {**_content(_ref("InferResponse")), **binary},
    }
    operation = _operation(
        f"v2_infer{suffix}",
        "Decide items (Open Inference Protocol). Each element of the input is an item as JSON.",
        {200: response},
        (*SCORING_ERRORS, 404),
    )
    operation["parameters"] = [
        {
            "name": header,
            "in": "header",
            "required": False,
            "description": "bytes of the JSON, if binary data follow it",
            "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
        }
    ]
    element = '{"id": "post-1", "text": ["call now and win"]}'
    operation["requestBody"] = _body(
        "InferRequest", {"inputs": [{"name": "item", "datatype": "BYTES", "shape": [1], "data": [element]}]}
    )
    return operation


def _operation(name: str, description: str, responses: Mapping[int, Any], errors: Sequence[int] = ()) -> dict[str, Any]:
    documented = {str(status): response for status, response in responses.items()}
    for status in sorted(errors):
        documented[str(status)] = {**_json("ErrorResponse"), "description": ERRORS[status]}
        if status in (429, 503):
            documented[str(status)]["headers"] = RETRY
    summary = description.partition(".")[0]
    return {"operationId": name, "summary": summary, "description": description, "responses": documented}


def _json(name: str, example: Any = None) -> dict[str, Any]:
    return {"description": "Success.", "content": _content(_ref(name), example)}


def _body(name: str, example: Any) -> dict[str, Any]:
    return {"required": True, "content": _content(_ref(name), example)}


def _content(schema: Mapping[str, Any], example: Any = None) -> dict[str, Any]:
    examples = {} if example is None else {"examples": {"example": {"value": example}}}
    return {"application/json": {"schema": schema, **examples}}


def _path_parameter(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARACTERS}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}
