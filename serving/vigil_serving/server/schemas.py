"""JSON Schemas of what goes in and out, for the OpenAPI description."""

from typing import Any

from vigil_serving.server.kserve import INPUT, OUTPUTS
from vigil_serving.server.request_parsing import ID_LENGTH
from vigil_serving.server.settings import Limits

STRING: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}
PROBABILITY: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
DIGEST: dict[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the bundle's manifest"}
BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
"""RFC 4648, section 4, with no bits to spare in the last character."""

EXAMPLE_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
EXAMPLE_DECISION: dict[str, Any] = {
    "id": "post-1",
    "probabilities": {"promotion": 0.91, "tobacco": 0.03},
    "labels": ["promotion"],
    "presence": "text",
    "action": "limit",
    "review": False,
    "reasons": [{"label": "promotion", "action": "limit", "probability": 0.91, "threshold": 0.8}],
    "evidence": [{"label": "promotion", "modality": "text", "span": {"index": 0, "start": 0, "stop": 16}, "weight": 0.88}],
    "cut": 0,
    "error": None,
}


def ref(name: str) -> dict[str, Any]:
    """A reference to a schema of :func:`schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def schemas(limits: Limits) -> dict[str, Any]:
    """All schemas by name.

    Args:
        limits: what a request may hold.
    """
    return {
        "Error": _object({"error": {**STRING, "description": "what, where and the mend, in one line"}}),
        "Status": _object({"status": {"enum": ["live", "loading", "ready", "draining"]}}),
        **_requests(limits),
        **_decisions(),
        **_bundles(),
        **_kserve(limits),
    }


def _requests(limits: Limits) -> dict[str, Any]:
    def media(most: int) -> dict[str, Any]:
        element = {"type": "string", "contentEncoding": "base64", "pattern": BASE64}
        return {"type": "array", "maxItems": most, "items": element}

    identity = {"type": "string", "minLength": 1, "maxLength": ID_LENGTH}
    columns = {
        "type": "object",
        "description": "what else is known of the item, such as market and language",
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    }
    item = {
        "id": identity,
        "text": {"type": "array", "items": STRING},
        "image": media(limits.media),
        "audio": media(limits.media),
        "columns": columns,
    }
    file = {"type": "string", "format": "binary"}
    form = {
        "id": identity,
        "text": {"type": "array", "items": STRING},
        "image": {"type": "array", "items": file},
        "audio": {"type": "array", "items": file},
    }
    words = (
        f"At most {limits.media} pictures and sounds, {limits.pixels} pixels, {limits.seconds:g} seconds and "
        f"{limits.characters} characters in all, in at most {limits.bytes} bytes."
    )
    return {
        "Item": _object(item, ["id"]),
        "Request": {
            **_object({"items": {"type": "array", "minItems": 1, "maxItems": limits.items, "items": ref("Item")}}),
            "description": words,
        },
        "Form": {
            **_object({**form, "columns": columns}, []),
            "description": "One item: `text`, `image` and `audio` any number of times; `columns` is a JSON object.",
        },
        "Reload": _object({"bundle": {"type": "string", "minLength": 1, "description": "a folder on the server"}}),
    }


def _decisions() -> dict[str, Any]:
    reason = {"label": STRING, "action": STRING, "probability": NUMBER, "threshold": NUMBER}
    span = {
        "index": {**COUNT, "description": "which text, image or sound"},
        "start": {**NUMBER, "description": "character or second"},
        "stop": NUMBER,
    }
    evidence = {
        "label": STRING,
        "modality": {"enum": ["text", "image", "audio"]},
        "span": _object(span),
        "weight": NUMBER,
    }
    decision = {
        "id": STRING,
        "probabilities": {"type": "object", "additionalProperties": PROBABILITY},
        "labels": {"type": "array", "items": STRING, "description": "those whose probability reaches their threshold"},
        "presence": {**STRING, "description": "the modalities that the item has, such as text+image"},
        "action": {"type": ["string", "null"], "description": "of the policy, if the bundle has one"},
        "review": {"type": "boolean", "description": "whether the policy sends the item to people"},
        "reasons": {"type": "array", "items": _object(reason)},
        "evidence": {"type": "array", "items": _object(evidence)},
        "cut": {**COUNT, "description": "segments beyond the bundle's limits that were left out"},
        "error": {"type": ["string", "null"], "description": "why the item could not be decoded"},
    }
    scored = {
        "bundle": STRING,
        "digest": DIGEST,
        "policy": {"type": ["string", "null"]},
        "decisions": {"type": "array", "items": ref("Decision")},
    }
    return {"Decision": _object(decision), "Scored": _object(scored)}


def _bundles() -> dict[str, Any]:
    strings = {"type": "array", "items": STRING}
    policy = _object({"name": STRING, "version": COUNT, "digest": STRING, "actions": strings})
    bundle = {
        "name": STRING,
        "digest": DIGEST,
        "version": STRING,
        "variant": STRING,
        "modalities": strings,
        "labels": strings,
        "thresholds": {"type": "object", "additionalProperties": NUMBER},
        "policy": {"anyOf": [policy, {"type": "null"}]},
        "shadow": {"type": ["string", "null"], "description": "digest of the bundle that is scored beside it"},
        "reload": {"enum": ["idle", "loading", "refused"]},
        "limits": {"type": "object", "additionalProperties": NUMBER},
    }
    return {
        "Bundle": _object(bundle),
        "Reloaded": _object({"bundle": STRING, "digest": DIGEST, "before": {**DIGEST, "description": "of the former"}}),
    }


def _kserve(limits: Limits) -> dict[str, Any]:
    def tensor(names: list[str]) -> dict[str, Any]:
        shape = {"type": "array", "items": {"type": "integer"}}
        return _object({"name": {"enum": names}, "datatype": {"enum": ["BYTES", "FP32"]}, "shape": shape})

    strings = {"type": "array", "items": STRING}
    given = _object(
        {
            "name": {"const": INPUT},
            "datatype": {"const": "BYTES"},
            "shape": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {"type": "integer", "minimum": 1, "maximum": limits.items},
            },
            "data": {**strings, "minItems": 1, "maxItems": limits.items, "description": "N items, each as JSON"},
        }
    )
    asked = {
        "name": {"enum": list(OUTPUTS)},
        "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
    }
    request = {
        "id": {"type": "string", "maxLength": 256},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": given},
        "outputs": {"type": "array", "items": {"type": "object", "properties": asked, "required": ["name"]}},
        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
    }
    response = {
        "model_name": STRING,
        "model_version": STRING,
        "id": STRING,
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name", "datatype", "shape"]}},
    }
    model = {
        "name": STRING,
        "versions": strings,
        "platform": STRING,
        "inputs": {"type": "array", "items": tensor([INPUT])},
        "outputs": {"type": "array", "items": tensor(list(OUTPUTS))},
        "parameters": _object({"labels": strings, "digest": DIGEST}),
    }
    return {
        "V2Server": _object({"name": STRING, "version": STRING, "extensions": strings}),
        "V2Model": _object(model),
        "V2Ready": _object({"name": STRING, "ready": {"type": "boolean"}}),
        "V2Request": {"type": "object", "properties": request, "required": ["inputs"]},
        "V2Response": {"type": "object", "properties": response, "required": ["model_name", "model_version", "outputs"]},
    }


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """An object of just these properties, all of them required unless said otherwise."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
