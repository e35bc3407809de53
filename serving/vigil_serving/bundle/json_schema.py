"""The JSON Schema of a bundle's JSON files, made from the dataclasses; docs/bundle.schema.json holds it.

After a change of :mod:`vigil_serving.bundle.metadata`: ``python -m vigil_serving.bundle.json_schema > docs/bundle.schema.json``.
"""

import json
import sys
from typing import Any

from pydantic import TypeAdapter

from vigil_serving.bundle.metadata import BundleMetadata, InputFacts

_LISTED = {"sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"}, "bytes": {"type": "integer", "minimum": 0}}
_MANIFEST = {
    "type": "object",
    "description": "Every other file but the signature, with its hash and size.",
    "properties": {
        "format": {"const": 1},
        "files": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": _LISTED,
                "required": ["sha256", "bytes"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["format", "files"],
    "additionalProperties": False,
}
_THRESHOLDS = {
    "type": "object",
    "description": "Label to the calibrated probability from which it is decided.",
    "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
}


def bundle_schema() -> dict[str, Any]:
    """The schemas of bundle.json, inputs.json, thresholds.json and manifest.json, by the files' names under ``properties``."""
    definitions: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for name, kind in (("bundle.json", BundleMetadata), ("inputs.json", InputFacts)):
        schema = TypeAdapter(kind).json_schema()
        definitions |= schema.pop("$defs", {})
        files[name] = schema
    for held in (*files.values(), *definitions.values()):
        if "properties" in held:
            held["required"], held["additionalProperties"] = list(held["properties"]), False
            held["description"] = held["description"].split("\n\n")[0]
    files |= {"thresholds.json": _THRESHOLDS, "manifest.json": _MANIFEST}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Vigil bundle: each JSON file by its name",
        "type": "object",
        "properties": files,
        "required": list(files),
        "$defs": definitions,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(bundle_schema(), indent=2) + "\n")
